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
use spec::FAMILY;
pub(crate) use spec::TABLE;

/// Puts the table in force, in one transaction. A table of the right shape keeps its sets, and with them the pods'
/// entries: only the rules are replaced. Any other is made anew, and the entries are carried over.
///
/// With `hold` the table is ours alone while this socket is open, where the kernel can do that.
pub(crate) async fn set(nft: &Connection<Nftables>, firewall: &Firewall, hold: bool) -> Result<()> {
    if hold {
        claim(nft).await?;
        match write(nft, firewall, HELD).await {
            // A kernel before 6.9 knows no table that is held and outlives its holder.
            Err(e) if matches!(e.errno, Some(libc::EOPNOTSUPP | libc::EINVAL)) => {}
            done => return done,
        }
    }
    write(nft, firewall, 0).await
}

/// `NFT_TABLE_F_OWNER` and `NFT_TABLE_F_PERSIST`: one socket's, and left when that is closed.
const OWNER: u32 = 2;
const PERSIST: u32 = 4;
const HELD: u32 = OWNER | PERSIST;

/// Takes over the table that an earlier run of the daemon has left.
pub(crate) async fn claim(nft: &Connection<Nftables>) -> Result<()> {
    let tables = nft.list_tables_in(FAMILY).await;
    let tables = tables.doing(|| "list nftables tables")?;
    let left = |flags: u32| flags & HELD == PERSIST;
    if !tables.iter().any(|t| t.name == TABLE && left(t.flags)) {
        return Ok(());
    }
    let batch = nft.transaction().update_table(TABLE, FAMILY, HELD);
    let done = batch.commit(nft).await;
    done.doing(|| format!("take over nftables table inet {TABLE}"))
}

async fn write(nft: &Connection<Nftables>, firewall: &Firewall, flags: u32) -> Result<()> {
    let mut batch = nft.transaction();
    if observe::has_shape(nft, flags).await? {
        for chain in spec::CHAINS {
            batch = batch.flush_chain(TABLE, chain, FAMILY);
        }
    } else {
        batch = make(nft, batch, flags).await?;
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
async fn make(nft: &Connection<Nftables>, mut batch: Transaction, flags: u32) -> Result<Transaction> {
    let mut entries = PodEntries::default();
    if is_there(nft).await? {
        // What cannot be read is not carried over: those pods are attached again.
        entries = guards::all(nft).await.unwrap_or_default();
        batch = batch.del_table(TABLE, FAMILY);
    }
    batch = batch.add_table_with_comment(TABLE, FAMILY, flags, Some(spec::COMMENT));
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
