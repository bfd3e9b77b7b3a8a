//! Other tools' chains at the forward hook that drop what no rule of theirs accepts: Docker sets iptables' FORWARD policy
//! to drop, ufw and cloud images do the like. An accept in our own table ends our own chains only, so that pods' packets
//! need one in each such chain. Those of iptables have a name and a shape that is known, and are given one; others are
//! reported.

use crate::error::{Context, Result, is_gone};
use meshd_model::kernel::{ForwardChain, POD_IFNAME_PREFIX};
use nlink::netlink::MessageBuilder;
use nlink::netlink::nftables::expr::{Expr, write_expressions};
use nlink::netlink::nftables::{
    CmpOp, Family, MetaKey, NFT_MSG_NEWRULE, RawMessage, Register, RuleExpr, RuleInfo, Verdict,
};
use nlink::{Connection, Nftables};
use std::collections::BTreeSet;

/// `NF_INET_FORWARD`
const FORWARD: u32 = 2;
/// `NF_DROP`
const DROP: u32 = 0;
/// Comment of the rules that we put into others' chains: teardown finds them by it.
const COMMENT: &str = "meshd";
/// Table of kube-proxy's nftables mode, which drops nothing by default. It is not read: in a large cluster its rules are
/// tens of megabytes, and it is changed all the time.
const KUBE_PROXY: &str = "kube-proxy";
/// Chains that are looked at; each costs a dump of its rules.
const CHAINS_MAX: usize = 32;

/// The chains that drop by default, and whether pods' packets pass them.
pub(crate) async fn observe(nft: &Connection<Nftables>, device: &str) -> Result<BTreeSet<ForwardChain>> {
    let chains = nft.list_chains().await.doing(|| "list nftables chains")?;
    let of_others = |c: &&nlink::netlink::nftables::ChainInfo| {
        let family = matches!(c.family, Family::Ip | Family::Ip6 | Family::Inet);
        let is_ours = c.family == super::spec::FAMILY && c.table == super::spec::TABLE;
        c.hook == Some(FORWARD) && family && !is_ours && c.table != KUBE_PROXY
    };
    let mut found = BTreeSet::new();
    for chain in chains.iter().filter(of_others).take(CHAINS_MAX) {
        let rules = rules(nft, chain.family, &chain.table, &chain.name).await?;
        let ends = rules.last().is_some_and(drops_all);
        if chain.policy == Some(DROP) || ends {
            found.insert(ForwardChain {
                family: chain.family.name().to_owned(),
                table: chain.table.clone(),
                chain: chain.name.clone(),
                passes: missing(&rules, device).is_empty(),
            });
        }
    }
    Ok(found)
}

/// Lets pods' packets pass iptables' FORWARD chains, where these drop by default.
pub(crate) async fn pass(nft: &Connection<Nftables>, device: &str) -> Result<()> {
    for found in observe(nft, device).await? {
        let Some(family) = family(&found).filter(|_| !found.passes && found.is_iptables()) else {
            continue;
        };
        let rules = rules(nft, family, &found.table, &found.chain).await?;
        // Behind what others decide (kube-proxy's rejects, DOCKER-USER, an operator's drops), before what drops the rest.
        let before = rules.last().filter(|r| drops_all(r)).map(|r| r.handle);
        let mut batch = nft.transaction();
        for end in missing(&rules, device) {
            batch = batch.raw(accept(family, &found, &end, before));
        }
        let done = batch.commit(nft).await;
        done.doing(|| format!("let pods' packets pass chain {found}"))?;
    }
    Ok(())
}

/// Takes our rules out of iptables' chains, and tells of which.
pub(crate) async fn remove(nft: &Connection<Nftables>) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for family in [Family::Ip, Family::Ip6] {
        let (table, chain) = ForwardChain::IPTABLES;
        let ours: Vec<u64> = rules(nft, family, table, chain)
            .await?
            .iter()
            .filter(|r| r.comment_text.as_deref() == Some(COMMENT))
            .map(|r| r.handle)
            .collect();
        if ours.is_empty() {
            continue;
        }
        let mut batch = nft.transaction();
        for handle in ours {
            batch = batch.del_rule(table, chain, family, handle);
        }
        let what = format!("our rules of nftables chain {} {table} {chain}", family.name());
        batch.commit(nft).await.doing(|| format!("remove {what}"))?;
        removed.push(what);
    }
    Ok(removed)
}

/// The chain's rules; none where the table is not there.
async fn rules(
    nft: &Connection<Nftables>,
    family: Family,
    table: &str,
    chain: &str,
) -> Result<Vec<RuleInfo>> {
    let all = nft.list_rules(table, family).await;
    let all = all.doing(|| format!("list the rules of nftables table {} {table}", family.name()));
    match all {
        Err(e) if is_gone(e.errno) => Ok(Vec::new()),
        Err(e) => Err(e),
        Ok(all) => Ok(all.into_iter().filter(|r| r.chain == chain).collect()),
    }
}

fn family(chain: &ForwardChain) -> Option<Family> {
    [Family::Ip, Family::Ip6]
        .into_iter()
        .find(|f| f.name() == chain.family)
}

/// Whether the rule drops or rejects whatever it is asked about.
fn drops_all(rule: &RuleInfo) -> bool {
    let mut ends = false;
    for expr in rule.expressions() {
        match expr {
            RuleExpr::Counter { .. } | RuleExpr::Log(_) => {}
            RuleExpr::Verdict(Verdict::Drop) | RuleExpr::Reject { .. } => ends = true,
            // iptables' REJECT is a target of its own.
            RuleExpr::Unknown { data, .. } if holds(&data, b"REJECT") => ends = true,
            _ => return false,
        }
    }
    ends
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|w| w == word)
}

/// One end of a packet's way: which of its interfaces, and how that is named.
struct End {
    key: MetaKey,
    /// As the kernel compares it: with its terminator, or a prefix without one.
    name: Vec<u8>,
}

impl End {
    /// `[counter] accept` for it, as iptables writes `-i mshp+ -j ACCEPT`.
    fn exprs(&self) -> Vec<Expr> {
        let dreg = Register::R0;
        vec![
            Expr::Meta { dreg, key: self.key },
            Expr::Cmp {
                sreg: dreg,
                op: CmpOp::Eq,
                data: self.name.clone(),
            },
            Expr::Counter,
            Expr::Verdict(Verdict::Accept),
        ]
    }
}

/// What has to be accepted: from pods, to pods, and from and to the tunnel, by which a Service's client outside reaches a
/// pod of another node.
fn ends(device: &str) -> [End; 4] {
    let pods = POD_IFNAME_PREFIX.as_bytes().to_vec();
    let mut device = device.as_bytes().to_vec();
    device.push(0);
    [
        (MetaKey::IifName, pods.clone()),
        (MetaKey::OifName, pods),
        (MetaKey::IifName, device.clone()),
        (MetaKey::OifName, device),
    ]
    .map(|(key, name)| End { key, name })
}

fn missing(rules: &[RuleInfo], device: &str) -> Vec<End> {
    let accepted = |end: &End| rules.iter().any(|rule| accepts(rule, end));
    ends(device).into_iter().filter(|end| !accepted(end)).collect()
}

/// Whether the rule accepts this end, whatever else of it; by whichever tool it was written.
fn accepts(rule: &RuleInfo, end: &End) -> bool {
    let exprs = rule.expressions();
    let mut rest = exprs.iter().filter(|e| !matches!(e, RuleExpr::Counter { .. }));
    let (Some(RuleExpr::Meta { key, .. }), Some(RuleExpr::Cmp { op, data, .. })) = (rest.next(), rest.next())
    else {
        return false;
    };
    let ends = matches!(
        (rest.next(), rest.next()),
        (Some(RuleExpr::Verdict(Verdict::Accept)), None)
    );
    // nft pads a whole name with zeros, iptables ends it with one; a prefix has none in either.
    let whole = |name: &[u8]| {
        let end = name.iter().position(|b| *b == 0);
        (
            name.get(..end.unwrap_or(name.len())).map(<[u8]>::to_vec),
            end.is_some(),
        )
    };
    ends && *key == end.key && *op == CmpOp::Eq && whole(data) == whole(&end.name)
}

/// A new rule, before the one with that handle, or at the chain's end.
fn accept(family: Family, chain: &ForwardChain, end: &End, before: Option<u64>) -> RawMessage {
    /// `NLM_F_CREATE` and `NLM_F_APPEND`; without the latter, what is named by its position is what comes next.
    const CREATE: u16 = 0x400;
    const APPEND: u16 = 0x800;
    /// Attributes of a rule (`nft_rule_attributes`).
    const TABLE: u16 = 1;
    const CHAIN: u16 = 2;
    const POSITION: u16 = 6;
    const USERDATA: u16 = 7;
    /// Length of a netlink header, which the transaction writes itself.
    const HEADER: usize = 16;
    let mut builder = MessageBuilder::new(0, 0);
    builder.append_attr_str(TABLE, &chain.table);
    builder.append_attr_str(CHAIN, &chain.chain);
    write_expressions(&mut builder, &end.exprs());
    let flags = match before {
        Some(handle) => {
            builder.append_attr(POSITION, &handle.to_be_bytes());
            CREATE
        }
        None => CREATE | APPEND,
    };
    // libnftnl's comment: type 0, length, text with its terminator.
    let mut comment = vec![0, u8::try_from(COMMENT.len() + 1).unwrap_or(u8::MAX)];
    comment.extend(COMMENT.as_bytes());
    comment.push(0);
    builder.append_attr(USERDATA, &comment);
    let attrs = builder.as_bytes().get(HEADER..).unwrap_or_default();
    RawMessage::new(NFT_MSG_NEWRULE, family)
        .flags(flags)
        .attrs(attrs.to_vec())
}
