//! Reads the table back. It counts as in force only if it is whole: a table that somebody flushed in part is none.

use super::spec::{self, EGRESS, FAMILY, FORWARD, FROM_POD, INGRESS, MASQUERADE, QUOTED, TABLE};
use super::{PodEntries, guards, outside};
use crate::error::{Context, Result};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Firewall, Mark, Outside};
use meshd_model::net::host;
use nlink::netlink::nftables::{ChainInfo, ChainType, Expr, RuleInfo};
use nlink::{Connection, Nftables};
use std::collections::{BTreeMap, BTreeSet};

/// `NF_ACCEPT`
const ACCEPT: u32 = 1;
/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;
/// `NF_INET_PRE_ROUTING`, `NF_INET_FORWARD` and `NF_INET_POST_ROUTING`
const PREROUTING: u32 = 0;
const FORWARDING: u32 = 2;
const POSTROUTING: u32 = 4;

/// What is in force, and the pods' entries where they can be read. The firewall is None unless table, chains, rules and sets are as meshd
/// writes them.
pub(crate) async fn observe(nft: &Connection<Nftables>) -> Result<(Option<Firewall>, Option<PodEntries>)> {
    if !super::is_there(nft).await? {
        return Ok((None, None));
    }
    let entries = guards::all(nft).await.ok();
    if !has_shape(nft, 0).await? {
        return Ok((None, entries));
    }
    let rules = nft.list_rules(TABLE, FAMILY).await;
    let rules = rules.doing(|| format!("list the rules of nftables table inet {TABLE}"))?;
    let read = read(&rules);
    let ours = is_written_as(&rules, &read)?;
    Ok((ours.then_some(read), entries))
}

/// Whether the table is there with these flags at least, and with sets and chains as meshd makes them, whatever the
/// rules are.
pub(super) async fn has_shape(nft: &Connection<Nftables>, flags: u32) -> Result<bool> {
    let tables = nft
        .list_tables_in(FAMILY)
        .await
        .doing(|| "list nftables tables")?;
    let Some(table) = tables.iter().find(|t| t.name == TABLE) else {
        return Ok(false);
    };
    let is_ours = table.comment.as_deref() == Some(spec::COMMENT)
        && table.flags & DORMANT == 0
        && table.flags & flags == flags;
    Ok(is_ours && sets_are_ours(nft).await? && chains_are_ours(nft).await?)
}

async fn sets_are_ours(nft: &Connection<Nftables>) -> Result<bool> {
    let there = nft.list_sets_in(TABLE, FAMILY).await;
    let there = there.doing(|| format!("list the sets of nftables table inet {TABLE}"))?;
    let there: BTreeSet<_> = there.into_iter().map(|s| (s.name, s.key_len)).collect();
    let lengths = spec::KEY_LENGTHS.map(|(name, length)| (name.to_owned(), length));
    Ok(there == BTreeSet::from(lengths))
}

async fn chains_are_ours(nft: &Connection<Nftables>) -> Result<bool> {
    let chains = nft.list_chains_in(TABLE, FAMILY).await;
    let chains = chains.doing(|| format!("list the chains of nftables table inet {TABLE}"))?;
    let base = |chain: &ChainInfo, kind: ChainType, hook: u32, priority: i32| {
        chain.hook == Some(hook)
            && chain.priority == Some(priority)
            && chain.chain_type == Some(kind)
            && chain.policy == Some(ACCEPT)
    };
    let filter = ChainType::Filter;
    let ours = |chain: &ChainInfo| match chain.name.as_str() {
        INGRESS => base(chain, filter, PREROUTING, spec::INGRESS_PRIORITY),
        QUOTED => base(chain, filter, PREROUTING, spec::QUOTED_PRIORITY),
        EGRESS => base(chain, filter, POSTROUTING, spec::EGRESS_PRIORITY),
        FORWARD => base(chain, filter, FORWARDING, outside::FORWARD_PRIORITY),
        MASQUERADE => base(chain, ChainType::Nat, POSTROUTING, outside::MASQUERADE_PRIORITY),
        FROM_POD => chain.hook.is_none(),
        _ => false,
    };
    Ok(chains.len() == spec::CHAINS.len() && chains.iter().all(ours))
}

/// What the rules say, as far as they are ours: the device that may pass, the CIDRs that may not, and so on.
fn read(rules: &[RuleInfo]) -> Firewall {
    let mut firewall = Firewall {
        pod_cidrs: BTreeSet::new(),
        device: String::new(),
        mark: Mark { value: 0, mask: 0 },
        outside: Outside::default(),
    };
    for rule in rules {
        let Some(text) = rule.nft_syntax_stateless() else {
            continue;
        };
        match (rule.chain.as_str(), &*text.split(' ').collect::<Vec<_>>()) {
            (INGRESS, ["iifname", name, "accept"]) if *name != "\"lo\"" => {
                firewall.device = name.replace('"', "");
            }
            (INGRESS, ["ip" | "ip6", "saddr", cidr, "counter", "drop"]) => {
                firewall.pod_cidrs.extend(cidr.parse::<IpNetwork>().ok());
            }
            (
                EGRESS,
                [
                    "oifname",
                    _,
                    "meta",
                    "mark",
                    "&",
                    mask,
                    "==",
                    value,
                    "counter",
                    "drop",
                ],
            ) => {
                firewall.mark = Mark {
                    value: number(value),
                    mask: number(mask),
                };
            }
            // A mask of all bits is not written.
            (EGRESS, ["oifname", _, "meta", "mark", value, "counter", "drop"]) => {
                firewall.mark = Mark {
                    value: number(value),
                    mask: u32::MAX,
                };
            }
            (
                FORWARD,
                [
                    "iifname",
                    _,
                    "ct",
                    "direction",
                    "original",
                    "ip" | "ip6",
                    "daddr",
                    prefix,
                    "counter",
                    "drop",
                ],
            ) => {
                firewall.outside.refused.extend(network(prefix));
            }
            (MASQUERADE, ["iifname", .., "masquerade", "fully-random"]) => firewall.outside.masquerade = true,
            _ => {}
        }
    }
    firewall
}

/// `0x10000000`; 0 for what is none, which no mark of ours is.
fn number(text: &str) -> u32 {
    let digits = text.strip_prefix("0x").unwrap_or_default();
    u32::from_str_radix(digits, 16).unwrap_or_default()
}

/// A prefix, or an address without one.
fn network(text: &str) -> Option<IpNetwork> {
    text.parse().ok().or_else(|| Some(host(text.parse().ok()?)))
}

/// Whether the rules are, one for one, what meshd writes for this firewall.
fn is_written_as(rules: &[RuleInfo], firewall: &Firewall) -> Result<bool> {
    type Chains<'a> = BTreeMap<&'a str, Vec<Option<Vec<Expr>>>>;
    let (mut there, mut wanted) = (Chains::new(), Chains::new());
    for rule in rules {
        let exprs = rule.spec().lower(FAMILY).ok();
        there.entry(&rule.chain).or_default().push(exprs);
    }
    for (chain, rule) in spec::rules(firewall)? {
        wanted.entry(chain).or_default().push(rule.lower(FAMILY).ok());
    }
    Ok(there == wanted)
}
