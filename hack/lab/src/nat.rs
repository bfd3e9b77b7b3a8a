//! A router with a NAT in front of a node, as people have one at home: outside, the node has the router's addresses.

use crate::netns::Netns;
use crate::plan::{Families, Plan, UPLINK};
use crate::underlay::{Underlay, address, cable, give};
use anyhow::{Context, Result};
use nlink::netlink::nftables::{
    BaseChain, Chain, Family, Field, Match, NatHook, NatStatement, Policy, Priority, Rule, RuleSpec, Stmt,
};
use nlink::netlink::{Connection, Netfilter, Nftables};
use std::time::Duration;

/// The router's interface on the node's side.
const INSIDE: &str = "inside";
const TABLE: &str = "nat";
const CHAIN: &str = "postrouting";
/// Where source addresses are translated (`srcnat`).
const PRIORITY: i32 = 100;

/// A router.
pub struct Nat {
    router: Netns,
}

impl Nat {
    /// Plugs the router into the underlay, at the addresses that the node would have, and the node into the router.
    pub async fn plug(
        underlay: &Underlay,
        router: Netns,
        node: &Netns,
        number: usize,
        families: &Families,
        forgets: Duration,
    ) -> Result<Self> {
        let mac = Plan::node(number).0;
        underlay
            .plug(&router, mac, &Plan::node_addresses(families, number, 0))
            .await?;
        let netlink = router.netlink()?;
        cable(&netlink, INSIDE, node, UPLINK, Some(Plan::mac(mac))).await?;
        let gateway = Plan::nat_gateway(number);
        for own in [gateway.0.into(), gateway.1.into()] {
            address(&netlink, INSIDE, own).await?;
        }
        let inside = node.netlink()?;
        give(&inside, &Plan::addresses_behind_nat(families, number), gateway).await?;
        translate(&router).await?;
        for (setting, value) in [("ipv4/ip_forward", 1), ("ipv6/conf/all/forwarding", 1)] {
            router.sysctl(setting, &value.to_string())?;
        }
        for kind in ["udp_timeout", "udp_timeout_stream"] {
            let setting = format!("netfilter/nf_conntrack_{kind}");
            router.sysctl(&setting, &forgets.as_secs().to_string())?;
        }
        Ok(Self { router })
    }

    /// Where it is.
    #[must_use]
    pub fn router(&self) -> &Netns {
        &self.router
    }

    /// It forgets what it has translated.
    pub async fn restart(&self) -> Result<()> {
        let shown = || format!("flush what {} has translated", self.router.name());
        let conntrack: Connection<Netfilter> = Connection::new_in(self.router.path()).with_context(shown)?;
        conntrack.flush_conntrack_all().await.with_context(shown)
    }
}

/// What leaves by the underlay gets the router's address, and a port by chance: not the one that it had before.
async fn translate(router: &Netns) -> Result<()> {
    let shown = || format!("translate in {}", router.name());
    let nft: Connection<Nftables> = Connection::new_in(router.path()).with_context(shown)?;
    let base = BaseChain::nat(NatHook::Postrouting, Priority::Custom(PRIORITY)).policy(Policy::Accept);
    let chain = Chain::new(TABLE, CHAIN)
        .with_context(shown)?
        .family(Family::Inet)
        .base(base);
    let rule = RuleSpec::new()
        .then(Match::eq(Field::Oifname, UPLINK))
        .then(Stmt::Nat(NatStatement::masquerade().fully_random()));
    let exprs = rule.lower(Family::Inet).with_context(shown)?;
    let batch = nft
        .transaction()
        .add_table(TABLE, Family::Inet)
        .add_chain(chain)
        .add_rule(Rule::new(TABLE, CHAIN).family(Family::Inet).expressions(exprs));
    batch.commit(&nft).await.with_context(shown)
}
