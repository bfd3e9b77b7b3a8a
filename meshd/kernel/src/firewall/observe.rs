//! Reads the table back. It counts as in force only if it is whole: a table that somebody flushed in part is none.

use super::spec::{self, CIDRS4, CIDRS6, EGRESS, FAMILY, FROM_POD, INGRESS, TABLE};
use super::{Guards, PodEntries};
use crate::error::{Context, Result};
use ipnetwork::IpNetwork;
use meshd_model::kernel::Firewall;
use nlink::netlink::nftables::{ChainInfo, ChainType, Expr, FilterHook, SetElement};
use nlink::{Connection, Nftables};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `NF_ACCEPT`
const ACCEPT: u32 = 1;
/// `NFT_TABLE_F_DORMANT`
const DORMANT: u32 = 1;

/// What is in force, and the pods' entries. The firewall is None unless table, chains, rules and sets are as meshd
/// writes them.
pub(crate) async fn observe(nft: &Connection<Nftables>) -> Result<(Option<Firewall>, PodEntries)> {
    let tables = nft
        .list_tables_in(FAMILY)
        .await
        .doing(|| "list nftables tables")?;
    let Some(table) = tables.iter().find(|t| t.name == TABLE) else {
        return Ok((None, PodEntries::default()));
    };
    let entries = Guards { nft }.all().await.unwrap_or_default();
    let device = table.comment.as_deref().and_then(spec::device_of);
    let Some(device) = device.filter(|_| table.flags & DORMANT == 0) else {
        return Ok((None, entries));
    };
    let mut firewall = Firewall {
        pod_cidrs: BTreeSet::new(),
        device: device.to_owned(),
    };
    if !chains_are_ours(nft).await? || !rules_are_ours(nft, &firewall).await? {
        return Ok((None, entries));
    }
    for set in [CIDRS4, CIDRS6] {
        let Ok(elements) = nft.list_set_elements(TABLE, set, FAMILY).await else {
            return Ok((None, entries));
        };
        for element in &elements {
            let Some(cidr) = prefix_of(element) else {
                return Ok((None, entries));
            };
            firewall.pod_cidrs.insert(cidr);
        }
    }
    Ok((Some(firewall), entries))
}

/// Whether what was read is what `wanted` was written as.
pub(crate) fn is_same(read: &Firewall, wanted: &Firewall) -> bool {
    read.device == wanted.device && read.pod_cidrs == spec::widest(&wanted.pod_cidrs)
}

async fn chains_are_ours(nft: &Connection<Nftables>) -> Result<bool> {
    let chains = nft.list_chains_in(TABLE, FAMILY).await;
    let chains = chains.doing(|| format!("list the chains of nftables table inet {TABLE}"))?;
    let base = |chain: &ChainInfo, hook: FilterHook, priority: i32| {
        let number = match hook {
            FilterHook::Prerouting => 0,
            _ => 4,
        };
        chain.hook == Some(number)
            && chain.priority == Some(priority)
            && chain.chain_type == Some(ChainType::Filter)
            && chain.policy == Some(ACCEPT)
    };
    let ours = |chain: &ChainInfo| match chain.name.as_str() {
        INGRESS => base(chain, FilterHook::Prerouting, spec::INGRESS_PRIORITY),
        EGRESS => base(chain, FilterHook::Postrouting, spec::EGRESS_PRIORITY),
        FROM_POD => chain.hook.is_none(),
        _ => false,
    };
    Ok(chains.len() == 3 && chains.iter().all(ours))
}

async fn rules_are_ours(nft: &Connection<Nftables>, firewall: &Firewall) -> Result<bool> {
    let found = nft.list_rules(TABLE, FAMILY).await;
    let found = found.doing(|| format!("list the rules of nftables table inet {TABLE}"))?;
    let mut there: BTreeMap<String, Vec<Option<Vec<Expr>>>> = BTreeMap::new();
    for rule in found {
        let exprs = rule.spec().lower(FAMILY).ok();
        there.entry(rule.chain).or_default().push(exprs);
    }
    let mut wanted: BTreeMap<String, Vec<Option<Vec<Expr>>>> = BTreeMap::new();
    for (chain, rule) in spec::rules(firewall)? {
        wanted
            .entry(chain.to_owned())
            .or_default()
            .push(rule.lower(FAMILY).ok());
    }
    Ok(there == wanted)
}

fn prefix_of(element: &SetElement) -> Option<IpNetwork> {
    let first = address(element.key())?;
    let last = element.key_end().map_or(Some(first), address)?;
    let (a, b, bits) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return None,
    };
    let host_bits = 128 - (a ^ b).leading_zeros();
    let prefix = IpNetwork::new(first, u8::try_from(bits - host_bits).ok()?).ok()?;
    (prefix.network() == first && prefix.broadcast() == last).then_some(prefix)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_read_back_as_prefixes() {
        for cidr in ["10.244.0.0/16", "10.0.0.1/32", "0.0.0.0/0", "fd00::/48", "::/0"] {
            let cidr: IpNetwork = cidr.parse().unwrap();
            let (_, element) = spec::cidr_element(cidr).unwrap();
            assert_eq!(prefix_of(&element), Some(cidr));
        }
        let range = SetElement::ipv4_range([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        assert_eq!(prefix_of(&range), None);
    }
}
