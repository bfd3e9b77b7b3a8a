//! The built-in scenario on simulated clusters: every proof holds, and the same seed is the same run.

use meshd_sim::{SimReport, run_demo};

#[track_caller]
fn runs(nodes: usize, seed: u64) -> SimReport {
    let report = run_demo(nodes, seed, None, &mut |_| {}).unwrap();
    assert_eq!(report.violation, None, "seed {seed}");
    for proof in &report.report.proofs {
        assert!(proof.held, "seed {seed}: {proof:#?}");
    }
    assert!(report.held(), "seed {seed}: {:?}", report.report.not_run);
    assert!(
        report.packets > 0 && report.handshakes > 0 && report.watch_events > 0 && report.invariant_checks > 0
    );
    for row in &report.report.nodes {
        assert_eq!(
            (row.peers, row.pods, row.problem.as_deref()),
            (nodes - 1, 2, None),
            "{row:?}"
        );
        assert!(
            row.handshakes > 0 && row.rx_bytes > 0 && row.tx_bytes > 0 && row.round_trips.is_some(),
            "{row:?}"
        );
    }
    report
}

#[test]
fn three_nodes_see_first_light_and_the_same_seed_is_the_same_run() {
    let (one, again, other) = (runs(3, 1), runs(3, 1), runs(3, 2));
    assert_eq!(one, again);
    assert_ne!(one.trace, other.trace);
}

#[test]
fn ten_nodes_see_first_light() {
    runs(10, 7);
}

#[test]
fn thirty_nodes_see_first_light() {
    let report = runs(30, 3);
    let sampled = report
        .report
        .proofs
        .iter()
        .find(|p| p.step == "everyone-reaches-everyone")
        .unwrap();
    assert_eq!(sampled.detail, "sampled 1000 of 3540 pairs");
}

#[test]
fn too_few_nodes_are_refused() {
    assert!(run_demo(2, 1, None, &mut |_| {}).is_err());
}
