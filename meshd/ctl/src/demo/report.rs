//! A report for people.

use super::progress::numbers;
use crate::table;
use meshd_scenario::{NodeRow, Report};
use std::time::Duration;

/// Nodes, proofs, and what it comes to.
pub(crate) fn text(report: &Report, took: Duration) -> String {
    let mut text = format!("{}\n\n", nodes(&report.nodes));
    for proof in &report.proofs {
        let mark = if proof.held { "ok  " } else { "FAIL" };
        text += &format!("{mark} {}{}\n", proof.name, numbers(proof));
        if !proof.detail.is_empty() {
            text += &format!("     {}\n", proof.detail);
        }
    }
    for step in &report.not_run {
        text += &format!("FAIL {step} was not run\n");
    }
    let held = report.proofs.iter().filter(|p| p.held).count();
    text += &format!(
        "\n{}: {held} of {} proofs hold, on arm {} with {} nodes, in {:.1} s\n",
        if report.held { "ok" } else { "FAILED" },
        report.proofs.len() + report.not_run.len(),
        report.arm,
        report.nodes.len(),
        took.as_secs_f64(),
    );
    text
}

fn nodes(rows: &[NodeRow]) -> comfy_table::Table {
    let mut table = table::new(&[
        "node",
        "addresses",
        "pods",
        "peers",
        "handshakes",
        "round trips",
        "min / median / max ms",
        "received",
        "sent",
    ]);
    for row in rows {
        let (count, times) = row.round_trips.map_or(("-".to_owned(), "-".to_owned()), |r| {
            let times = [r.min_us, r.median_us, r.max_us].map(table::millis).join(" / ");
            (r.count.to_string(), times)
        });
        let name = match &row.problem {
            Some(problem) => format!("{}\n{problem}", row.node),
            None => row.node.to_string(),
        };
        table.add_row([
            name,
            table::lines(&row.addresses),
            row.pods.to_string(),
            row.peers.to_string(),
            row.handshakes.to_string(),
            count,
            times,
            table::bytes(row.rx_bytes),
            table::bytes(row.tx_bytes),
        ]);
    }
    table
}
