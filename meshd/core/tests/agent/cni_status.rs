//! CNI STATUS: 50 until ADD can succeed, 51 where pods that run may be hurt.

use crate::world::{World, add, config};
use meshd_core::{CniCall, KubeEvent};
use meshd_model::cni::code;

#[test]
fn status_is_50_at_each_thing_that_is_missing_and_fine_then() {
    let mut world = World::new(config());
    let told = |world: &World| world.agent.cni_status().map_err(|e| (e.code, e.msg));
    assert_eq!(told(&world).unwrap_err().0, code::NOT_AVAILABLE);
    world.run();
    let mut before = told(&world).unwrap_err();
    for event in [
        KubeEvent::OwnNode(world.own.clone().unwrap()),
        KubeEvent::NodesSynced,
        KubeEvent::PodsSynced,
    ] {
        world.kube(event);
        world.run();
        assert_eq!(before.0, code::NOT_AVAILABLE, "{before:?}");
        match told(&world) {
            Err(next) => {
                assert_ne!(next.1, before.1);
                before = next;
            }
            Ok(()) => before.1 = "nothing".into(),
        }
    }
    assert_eq!(before.1, "nothing");
}

#[test]
fn what_may_hurt_pods_is_51_only_where_pods_run() {
    for with_pod in [false, true] {
        for what in ["device", "firewall"] {
            let mut world = World::ready(0);
            if with_pod {
                world.add("web").unwrap();
            }
            if what == "device" {
                world.kernel.state.device = None;
                world.kernel.failing = Some(("SetDevice".into(), 1));
            } else {
                world.kernel.state.firewall = None;
                world.kernel.failing = Some(("SetFirewall".into(), 1));
            }
            world.observe();
            world.run();
            let told = world.agent.cni_status().unwrap_err();
            let expected = if with_pod { code::HURT } else { code::NOT_AVAILABLE };
            assert_eq!(told.code, expected, "{what}: {told}");
        }
    }
}

#[test]
fn an_api_server_that_is_away_changes_neither_status_nor_add_of_a_pod_that_was_seen() {
    let mut world = World::ready(0);
    world.see_pod("seen");
    let message = "connection refused".to_owned();
    world.kube(KubeEvent::Unreachable { message });
    assert_eq!(world.agent.cni_status(), Ok(()));
    assert!(world.answer(CniCall::Add(add("seen"))).is_ok());
    let request = world.ask(CniCall::Add(add("unseen")));
    world.wait(std::time::Duration::from_secs(11));
    let told = world.replies[&request].clone().unwrap_err();
    assert_eq!(told.code, code::TRY_AGAIN);
    assert!(told.details.contains("connection refused"), "{told}");
}
