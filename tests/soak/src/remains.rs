//! What the kernel and the store hold, as lines: to be compared before and after.

use crate::place::Place;
use anyhow::{Context, Result};
use meshd_model::cni::notes_folder;
use nlink::netlink::nftables::Family;
use nlink::netlink::{Connection, Nftables};
use std::collections::BTreeSet;
use std::path::Path;

/// Interfaces, addresses, routes, policy rules, nftables elements, leases and whatever else lies in the node's folders.
pub(crate) fn lines(place: &Place) -> Result<BTreeSet<String>> {
    let mut lines = place.block_on(async {
        let mut lines = meshd_lab::state::lines(place.netns()).await?;
        lines.extend(elements().await?);
        anyhow::Ok(lines)
    })?;
    lines.extend(files(&place.path("state/store/leases"))?);
    lines.extend(files(&notes_folder(&place.socket()))?);
    Ok(lines)
}

async fn elements() -> Result<Vec<String>> {
    let nftables = Connection::<Nftables>::new().context("open nftables")?;
    let mut lines = Vec::new();
    for table in nftables.list_tables_in(Family::Inet).await? {
        let sets = nftables.list_sets_in(&table.name, Family::Inet).await?;
        for set in sets {
            let elements = nftables
                .list_set_elements(&table.name, &set.name, Family::Inet)
                .await?;
            lines.extend(
                elements
                    .iter()
                    .map(|e| format!("element of {}/{}: {:02x?}", table.name, set.name, e.key())),
            );
        }
    }
    Ok(lines)
}

fn files(folder: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("list {}", folder.display()))?,
    };
    Ok(entries
        .flatten()
        .map(|entry| format!("file {}", entry.path().display()))
        .collect())
}
