//! The nftables table `inet meshd`: fail closed, no spoofing, the world outside. Written through netlink, in one transaction.

pub(crate) mod forward;
mod guards;
mod observe;
mod outside;
mod spec;

pub(crate) use guards::{Guards, PodEntries};
pub(crate) use observe::observe;

use crate::error::{Context, Result};
use meshd_model::kernel::Firewall;
use nlink::netlink::nftables::{Rule, Transaction};
use nlink::{Connection, Nftables};
use spec::{FAMILY, TABLE};

/// Puts the table in force, in one transaction. A table of the right shape keeps its sets, and with them the pods'
/// entries: only the rules are replaced. Any other is made anew, and the entries are carried over.
pub(crate) async fn set(nft: &Connection<Nftables>, firewall: &Firewall) -> Result<()> {
    let mut batch = nft.transaction();
    if observe::has_shape(nft).await? {
        for chain in spec::CHAINS {
            batch = batch.flush_chain(TABLE, chain, FAMILY);
        }
    } else {
        batch = make(nft, batch).await?;
    }
    for (chain, rule) in spec::rules(firewall)? {
        let exprs = rule
            .lower(FAMILY)
            .doing(|| format!("write a rule of chain {chain}"))?;
        batch = batch.add_rule(Rule::new(TABLE, chain).family(FAMILY).expressions(exprs));
    }
    let done = batch.commit(nft).await;
    done.doing(|| format!("put nftables table inet {TABLE} in force"))
}

/// Elements that fit one netlink message with room to spare.
const ELEMENTS_MAX: usize = 500;

/// The table without its rules, in the place of one that may be there.
async fn make(nft: &Connection<Nftables>, mut batch: Transaction) -> Result<Transaction> {
    let mut entries = PodEntries::default();
    if is_there(nft).await? {
        // What cannot be read is not carried over: those pods are attached again.
        entries = Guards { nft }.all().await.unwrap_or_default();
        batch = batch.del_table(TABLE, FAMILY);
    }
    batch = batch.add_table_with_comment(TABLE, FAMILY, 0, Some(spec::COMMENT));
    for set in spec::sets() {
        batch = batch.add_set(set.clone());
        for part in entries.elements(set.name()).chunks(ELEMENTS_MAX) {
            batch = batch.add_set_elements(&set, part);
        }
    }
    for chain in spec::chains()? {
        batch = batch.add_chain(chain);
    }
    Ok(batch)
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

async fn is_there(nft: &Connection<Nftables>) -> Result<bool> {
    let tables = nft
        .list_tables_in(FAMILY)
        .await
        .doing(|| "list nftables tables")?;
    Ok(tables.iter().any(|t| t.name == TABLE))
}
