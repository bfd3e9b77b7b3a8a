//! The nftables table `inet meshd`: fail closed, no spoofing. Written through netlink, in one transaction.

mod guards;
mod observe;
mod spec;

pub(crate) use guards::{Guards, PodEntries};
pub(crate) use observe::{is_same, observe};

use crate::error::{Context, Result};
use meshd_model::kernel::Firewall;
use nlink::netlink::nftables::{Rule, SetElement};
use nlink::{Connection, Nftables};
use spec::{FAMILY, TABLE};

/// Puts the table in force. What was there is replaced in the same transaction, so no packet sees neither or both;
/// the pods' entries are carried over.
pub(crate) async fn set(nft: &Connection<Nftables>, firewall: &Firewall) -> Result<()> {
    let there = is_there(nft).await?;
    let entries = if there {
        Guards { nft }.all().await?
    } else {
        PodEntries::default()
    };

    let mut batch = nft.transaction();
    if there {
        batch = batch.del_table(TABLE, FAMILY);
    }
    batch = batch.add_table_with_comment(TABLE, FAMILY, 0, Some(&spec::comment(&firewall.device)));
    for set in spec::sets() {
        let elements = elements_of(set.name(), firewall, &entries)?;
        batch = batch.add_set(set.clone());
        for part in elements.chunks(ELEMENTS_MAX) {
            batch = batch.add_set_elements(&set, part);
        }
    }
    for chain in spec::chains()? {
        batch = batch.add_chain(chain);
    }
    for (chain, rule) in spec::rules(firewall)? {
        let exprs = rule
            .lower(FAMILY)
            .doing(|| format!("write a rule of chain {chain}"))?;
        batch = batch.add_rule(Rule::new(TABLE, chain).family(FAMILY).expressions(exprs));
    }
    batch
        .commit(nft)
        .await
        .doing(|| format!("put nftables table inet {TABLE} in force"))
}

/// Takes the table away; whether there was one.
pub(crate) async fn remove(nft: &Connection<Nftables>) -> Result<bool> {
    if !is_there(nft).await? {
        return Ok(false);
    }
    let batch = nft.transaction().del_table(TABLE, FAMILY);
    let done = batch.commit(nft).await;
    done.map(|()| true)
        .doing(|| format!("remove nftables table inet {TABLE}"))
}

/// Elements that fit one netlink message with room to spare.
const ELEMENTS_MAX: usize = 500;

fn elements_of(set: &str, firewall: &Firewall, entries: &PodEntries) -> Result<Vec<SetElement>> {
    let mut elements = entries.elements(set);
    for cidr in spec::widest(&firewall.pod_cidrs) {
        let (of, element) = spec::cidr_element(cidr)?;
        if of == set {
            elements.push(element);
        }
    }
    Ok(elements)
}

async fn is_there(nft: &Connection<Nftables>) -> Result<bool> {
    let tables = nft
        .list_tables_in(FAMILY)
        .await
        .doing(|| "list nftables tables")?;
    Ok(tables.iter().any(|t| t.name == TABLE))
}
