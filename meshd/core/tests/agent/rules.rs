//! The policy rules that keep what pods send to other nodes' own addresses inside the tunnel.

use crate::world::{World, add, attachment};
use meshd_core::CniCall;
use meshd_model::cni::code;
use std::time::Duration;

/// Another hand (`ip rule flush`, networkd) took the rules off, and they cannot be put back for now.
fn without_rules(world: &mut World) {
    world.kernel.failing = Some(("SetRule".to_owned(), 1));
    world.kernel.state.rules.clear();
    world.observe();
    world.run();
}

#[test]
fn a_node_without_its_rules_is_not_ready_and_may_hurt_pods() {
    let mut world = World::ready(1);
    without_rules(&mut world);
    let told = world.agent.cni_status().unwrap_err();
    assert_eq!(told.code, code::NOT_AVAILABLE, "{told:?}");
    assert!(told.msg.contains("policy rules"), "{told:?}");
    world.see_pod("web");
    assert_eq!(world.add("web").unwrap_err().code, code::TRY_AGAIN);

    world.kernel.failing = None;
    world.wait(Duration::from_secs(60));
    assert!(world.agent.is_ready());
    world.add("web").unwrap();
    without_rules(&mut world);
    assert_eq!(world.agent.cni_status().unwrap_err().code, code::HURT);
}

#[test]
fn a_pod_is_attached_when_its_rule_is_there() {
    let mut world = World::ready(1);
    world.see_pod("web");
    let request = world.ask(CniCall::Add(add("web")));
    without_rules(&mut world);
    let attach = format!("attach {}", attachment("web"));
    assert!(!world.done.contains(&attach), "{:?}", world.done);
    assert!(!world.replies.contains_key(&request));

    world.kernel.failing = None;
    world.wait(Duration::from_secs(5));
    assert!(world.done.contains(&attach), "{:?}", world.done);
    assert!(world.replies[&request].is_ok());
    world.assert_quiescent();
}
