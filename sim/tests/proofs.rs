//! A proof that cannot fail proves nothing: here each of them fails, and says why.

use meshd_scenario::{Arm, Report, Scenario, run};
use meshd_sim::{Config, Link, SimArm};

const PREPARE: &str = "name: t\nsteps:\n- do: wait-ready\n- do: add-pods\n  per-node: 1\n";

fn arm() -> SimArm {
    SimArm::new(Config::new(3, 1))
}

fn report(arm: &mut SimArm, text: &str) -> Report {
    run(&Scenario::parse(text).unwrap(), arm, &mut |_| {})
}

/// The last proof of these steps does not hold, for this reason.
#[track_caller]
fn fails(arm: &mut SimArm, steps: &str, why: &str) {
    let report = report(arm, steps);
    let proof = report.proofs.last().unwrap();
    assert!(!proof.held && !report.held, "{proof:#?}");
    assert!(proof.detail.contains(why), "{proof:#?}");
}

#[test]
fn a_cut_network_is_not_everyone_reaching_everyone() {
    for step in ["everyone-reaches-everyone", "nodes-and-pods"] {
        let mut arm = arm();
        arm.sim_mut().partition(&[2]);
        fails(
            &mut arm,
            &format!("{PREPARE}- do: {step}\n  within: 3s\n"),
            "Silent",
        );
    }
}

#[test]
fn nobody_to_try_is_no_proof() {
    let steps = "name: t\nsteps:\n- do: wait-ready\n- do: everyone-reaches-everyone\n  within: 1s\n";
    fails(&mut arm(), steps, "no one to try");
    let steps = "name: t\nsteps:\n- do: wait-ready\n- do: remove-annotation\n  node: 1\n  annotation: meshd.dev/mtu\n";
    fails(&mut arm(), steps, "no pod on node-1");
}

#[test]
fn a_stream_whose_control_loses_is_void() {
    let mut arm = arm();
    arm.sim_mut().set_links(Link {
        loss: 50_000,
        ..Link::default()
    });
    let steps = format!("{PREPARE}- do: kill-agent-under-stream\n  node: 1\n");
    fails(&mut arm, &steps, "void: the control stream");
}

#[test]
fn a_stream_that_loses_beside_one_that_does_not_is_told_apart() {
    let mut arm = arm();
    arm.sim_mut().set_link(
        0,
        1,
        Link {
            loss: 50_000,
            ..Link::default()
        },
    );
    let steps = format!("{PREPARE}- do: kill-agent-under-stream\n  node: 1\n");
    fails(&mut arm, &steps, "were lost");
}

#[test]
fn an_annotation_that_matters_to_no_one_makes_no_one_unreachable() {
    let steps = format!(
        "{PREPARE}- do: remove-annotation\n  node: 2\n  annotation: example.com/unrelated\n  within: 2s\n"
    );
    fails(&mut arm(), &steps, "still reached");
}

#[test]
fn a_capture_without_the_control_marker_is_void() {
    let steps = format!("{PREPARE}- do: everyone-reaches-everyone\n- do: underlay-is-encrypted\n");
    fails(&mut arm(), &steps, "void: the marker");
    let steps = "name: t\nsteps:\n- do: control-marker\n- do: wait-ready\n- do: underlay-is-encrypted\n";
    fails(&mut arm(), steps, "void: no WireGuard");
}

#[test]
fn the_world_outside_is_told_apart_from_what_is_refused() {
    let steps = format!("{PREPARE}- do: world-outside\n  within: 1s\n");
    let with = |change: fn(&mut Config)| {
        let mut config = Config::new(3, 1);
        change(&mut config);
        SimArm::new(config)
    };
    fails(
        &mut with(|c| c.outside.masquerade = false),
        &steps,
        "p1-1 to 203.0.113.1 by ICMP: Silent",
    );
    fails(
        &mut with(|c| c.outside.metadata = true),
        &steps,
        "p1-1 to 169.254.169.254 by ICMP: Answered",
    );
    fails(
        &mut with(|c| c.outside.except.clear()),
        &steps,
        "p1-1 to 203.0.113.2 by ICMP: Answered",
    );
    let none = "name: t\nsteps:\n- do: wait-ready\n- do: world-outside\n  within: 1s\n";
    fails(&mut arm(), none, "there is no pod on node-1 to try");
}

#[test]
fn a_pod_that_is_left_is_residue() {
    fails(
        &mut arm(),
        &format!("{PREPARE}- do: no-residue\n"),
        "node-1: interface mshp",
    );
}

#[test]
fn a_step_that_cannot_be_carried_out_ends_the_run() {
    let mut arm = arm();
    arm.set_api_server(false).unwrap();
    let report = report(&mut arm, &format!("{PREPARE}- do: no-residue\n"));
    assert!(!report.held);
    assert_eq!(report.not_run, ["add-pods", "no-residue"]);
    assert!(
        report
            .proofs
            .last()
            .unwrap()
            .detail
            .contains("node-1 is not ready"),
        "{:?}",
        report.proofs
    );
}
