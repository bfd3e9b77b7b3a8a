//! What the firewall shall be, and what of other tools' chains stands in the way.

use crate::world::{World, config};
use meshd_core::{Config, METADATA, Outside};
use meshd_model::kernel::ForwardChain;

fn refused(outside: Outside) -> Vec<String> {
    let mut world = World::new(Config { outside, ..config() });
    world.kernel.closed = None;
    world.sync(0);
    let firewall = world.kernel.state.firewall.clone().unwrap();
    firewall.outside.refused.iter().map(ToString::to_string).collect()
}

#[test]
fn services_and_metadata_are_refused_outside_unless_configured() {
    let services = config().service_cidrs.len();
    let all = refused(Outside::default());
    assert_eq!(all.len(), services + METADATA.len());
    assert!(all.contains(&"169.254.169.254/32".to_owned()), "{all:?}");

    let metadata = Outside {
        metadata: true,
        ..Outside::default()
    };
    assert_eq!(refused(metadata).len(), services);

    let except = Outside {
        except: vec!["192.0.2.7/24".parse().unwrap()],
        ..Outside::default()
    };
    assert!(refused(except).contains(&"192.0.2.0/24".to_owned()));
}

#[test]
fn iptables_chains_are_passed_and_others_named() {
    let chain = |family: &str, table: &str, chain: &str| ForwardChain {
        family: family.into(),
        table: table.into(),
        chain: chain.into(),
        passes: false,
    };
    let mut world = World::ready(1);
    world.forget_done();
    let iptables = chain("ip6", "filter", "FORWARD");
    let foreign = chain("inet", "firewalld", "filter_FORWARD");
    world.kernel.state.forward_chains = [iptables.clone(), foreign.clone()].into();
    world.observe();
    world.run();
    assert_eq!(world.done, ["pass forward meshd0"]);
    assert!(world.complains(
        "forwarding",
        "nftables chain inet firewalld filter_FORWARD of another tool"
    ));
    assert_eq!(world.problems().len(), 1, "{:?}", world.problems());
    assert!(world.agent.is_ready());

    // Flushed and made again by its tool.
    world.forget_done();
    world.kernel.state.forward_chains = [iptables].into();
    world.observe();
    world.run();
    assert_eq!(world.done, ["pass forward meshd0"]);
    assert_eq!(world.problems(), []);
    world.assert_quiescent();
}
