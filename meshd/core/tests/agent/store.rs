//! A store that is full, read-only or broken.

use crate::world::{World, config};
use meshd_model::cni::code;
use std::time::Duration;

const ENOSPC: i32 = 28;
const EROFS: i32 = 30;

#[test]
fn a_full_store_refuses_add_and_leaves_nothing() {
    for errno in [ENOSPC, EROFS] {
        let mut world = World::ready(0);
        world.store_failing = Some(errno);
        for _ in 0..600 {
            // More often than there are addresses: none is leaked.
            assert_eq!(world.add("web").unwrap_err().code, code::IO);
        }
        assert!(world.kernel.state.pod_links.is_empty());
        world.store_failing = None;
        world.wait(Duration::from_secs(31));
        assert!(world.add("web").is_ok());
        world.assert_quiescent();
    }
}

#[test]
fn a_store_that_fails_in_the_middle_rolls_back() {
    let mut world = World::ready(0);
    world.see_pod("web");
    let request = world.ask(meshd_core::CniCall::Add(crate::world::add("web")));
    world.run_store();
    world.store_failing = Some(ENOSPC);
    world.run();
    assert_eq!(world.replies[&request].as_ref().unwrap_err().code, code::IO);
    assert!(world.kernel.state.pod_links.is_empty(), "the link is down");
    assert!(
        world.complains("attachment/web/eth0", "failed"),
        "its lease is not removed yet"
    );
    world.store_failing = None;
    world.wait(Duration::from_secs(120));
    assert!(world.leases.is_empty());
    assert_eq!(world.problems(), []);
}

#[test]
fn del_takes_the_pod_down_though_the_store_is_read_only() {
    let mut world = World::ready(0);
    world.add("web").unwrap();
    world.store_failing = Some(EROFS);
    let refused = world.del("web").unwrap_err();
    assert_eq!(refused.code, code::IO);
    assert!(world.kernel.state.pod_links.is_empty());
    assert_eq!(
        world.del("web").unwrap_err().code,
        code::IO,
        "tried again at once"
    );
    world.store_failing = None;
    assert_eq!(world.del("web"), Ok(()));
    assert!(world.leases.is_empty());
    world.assert_quiescent();
}

#[test]
fn a_store_that_does_not_load_keeps_the_node_closed_and_pods_running() {
    let mut world = World::new(config());
    world.store_failing = Some(5);
    world.sync(1);
    assert!(!world.agent.is_ready());
    assert!(world.complains("store", "failed"));
    assert!(world.kernel.state.firewall.is_some() && world.kernel.state.device.is_none());
    assert_eq!(world.add("web").unwrap_err().code, code::TRY_AGAIN);
    let request = world.ask(meshd_core::CniCall::Del(crate::world::attachment("web")));
    world.run();
    assert!(
        !world.replies.contains_key(&request),
        "nobody can say yet that it is unknown"
    );
    world.store_failing = None;
    world.wait(Duration::from_secs(3));
    assert_eq!(world.replies[&request], Ok(None));
    assert!(world.agent.is_ready());
}
