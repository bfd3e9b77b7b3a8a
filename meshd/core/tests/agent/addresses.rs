//! Addresses that are asked for by name, and those that nobody gets who does not.

use crate::world::{World, add, config, pod};
use meshd_core::{CniCall, Config, Ipam, KubeEvent, PodReason};
use meshd_model::cni::{Added, CniError, code};
use meshd_model::{PodMeta, PodRef, PodWants};
use std::net::IpAddr;
use std::time::Duration;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn has(added: &Added) -> Vec<String> {
    added.ips.iter().map(|(net, _)| net.ip().to_string()).collect()
}

/// The API server shows the pod with this annotation.
fn annotate(world: &mut World, name: &str, wants: PodWants) {
    world.kube(KubeEvent::PodApplied(PodMeta {
        pod: pod(name),
        wants,
        mirror: String::new(),
    }));
}

fn named(texts: &[&str]) -> PodWants {
    PodWants {
        ips: ips(texts),
        ..PodWants::default()
    }
}

fn add_annotated(world: &mut World, name: &str, wants: PodWants) -> Result<Added, CniError> {
    annotate(world, name, wants);
    world.answer(CniCall::Add(add(name))).map(Option::unwrap)
}

fn add_asking(world: &mut World, name: &str, texts: &[&str]) -> Result<Added, CniError> {
    let mut add = add(name);
    add.wants.ips = ips(texts);
    world.see_pod(name);
    world.answer(CniCall::Add(add)).map(Option::unwrap)
}

#[test]
fn what_is_named_is_given_and_the_other_family_gets_any() {
    let mut world = World::ready(0);
    let both = add_annotated(&mut world, "both", named(&["10.244.0.77", "fd00:244::77"])).unwrap();
    assert_eq!(has(&both), ["10.244.0.77", "fd00:244::77"]);
    let one = add_annotated(&mut world, "one", named(&["fd00:244::78"])).unwrap();
    assert_eq!(has(&one), ["10.244.0.2", "fd00:244::78"]);
    let asked = add_asking(&mut world, "asked", &["10.244.0.79"]).unwrap();
    assert_eq!(has(&asked), ["10.244.0.79", "fd00:244::2"]);
    world.assert_quiescent();
}

#[test]
fn what_cannot_be_given_is_refused_and_nothing_else_given() {
    let mut world = World::ready(0);
    add_annotated(&mut world, "first", named(&["10.244.0.77"])).unwrap();
    for (wants, said) in [
        (&["10.244.0.77"][..], "in use"),
        (&["10.244.1.7"], "not among the node's pod CIDRs"),
        (&["10.244.0.1"], "the network's own"),
        (&["10.244.0.0"], "the network's own"),
        (&["192.0.2.1"], "not among the node's pod CIDRs"),
        (&["fd00:244::9", "10.244.0.77"], "in use"),
    ] {
        let refused = add_annotated(&mut world, "other", named(wants)).unwrap_err();
        assert_eq!(refused.code, code::CONFIG, "{refused}");
        assert!(refused.msg.contains(said), "{refused}");
    }
    let malformed = PodWants {
        problem: Some("annotation meshd.dev/ips is \"x\": it should have been an IP address".into()),
        ..PodWants::default()
    };
    let refused = add_annotated(&mut world, "other", malformed).unwrap_err();
    assert_eq!(refused.code, code::CONFIG);
    assert!(refused.msg.contains("meshd.dev/ips"), "{refused}");

    annotate(&mut world, "other", named(&["10.244.0.80"]));
    let mut differs = add("other");
    differs.wants.ips = ips(&["10.244.0.81"]);
    let refused = world.answer(CniCall::Add(differs)).unwrap_err();
    assert_eq!(refused.code, code::CONFIG);
    assert!(
        refused.msg.contains("10.244.0.80") && refused.msg.contains("10.244.0.81"),
        "{refused}"
    );
    let twice = add_asking(&mut world, "twice", &["10.244.0.80", "10.244.0.81"]).unwrap_err();
    assert_eq!(twice.code, code::CONFIG);
    assert_eq!(world.leases.len(), 1, "nothing was taken on the way");
    // What was refused beside it is free: no address is lost on the way.
    let free = add_annotated(&mut world, "free", named(&["fd00:244::9", "10.244.0.81"])).unwrap();
    assert_eq!(has(&free), ["10.244.0.81", "fd00:244::9"]);
    world.assert_quiescent();
}

#[test]
fn a_family_that_the_node_does_not_have_is_refused() {
    let mut world = World::new(config());
    if let Some(own) = &mut world.own {
        own.pod_cidrs.retain(|net| net.is_ipv4());
    }
    world.sync(0);
    let refused = add_asking(&mut world, "six", &["fd00:244::9"]).unwrap_err();
    assert_eq!(refused.code, code::CONFIG);
    assert!(refused.msg.contains("no pod CIDR of its family"), "{refused}");
}

#[test]
fn a_named_address_is_waited_for_while_its_last_holder_is_taken_down() {
    let mut world = World::ready(0);
    add_annotated(&mut world, "old", named(&["10.244.0.77"])).unwrap();
    let del = world.ask(CniCall::Del(crate::world::attachment("old")));
    annotate(&mut world, "new", named(&["10.244.0.77"]));
    let request = world.ask(CniCall::Add(add("new")));
    assert!(
        !world.replies.contains_key(&request),
        "it is neither refused nor given"
    );
    world.run();
    assert_eq!(world.replies[&del], Ok(None));
    let added = world.replies[&request].clone().unwrap().unwrap();
    assert_eq!(
        has(&added)[0],
        "10.244.0.77",
        "without a rest: it was asked for by name"
    );
}

#[test]
fn what_is_reserved_is_given_by_name_only() {
    let reserved = ["10.244.0.0/28", "fd00:244::/66"].map(|net| net.parse().unwrap());
    let ipam = Ipam {
        reserved: reserved.into(),
        ..Ipam::default()
    };
    let mut world = World::new(Config { ipam, ..config() });
    world.sync(0);
    assert_eq!(
        has(&world.add("any").unwrap()),
        ["10.244.0.16", "fd00:244:0:0:4000::"]
    );
    let by_name = add_annotated(&mut world, "named", named(&["10.244.0.7"])).unwrap();
    assert_eq!(has(&by_name)[0], "10.244.0.7");
    world.del("named").unwrap();
    world.restart();
    world.run();
    world.sync(0);
    assert_eq!(has(&world.add("next").unwrap())[0], "10.244.0.17");
}

/// A node with room for one pod of IPv4.
fn small() -> World {
    let mut world = World::new(config());
    if let Some(own) = &mut world.own {
        own.pod_cidrs = vec!["10.244.0.0/30".parse().unwrap()];
    }
    world.sync(0);
    world
}

#[test]
fn a_pod_that_gets_no_address_is_told_of_once_in_a_while() {
    let mut world = small();
    world.add("first").unwrap();
    for _ in 0..10 {
        assert_eq!(world.add("second").unwrap_err().code, code::EXHAUSTED);
    }
    let [event] = &world.events[..] else {
        panic!("{:?}", world.events)
    };
    assert_eq!(
        (&event.pod, event.reason),
        (&pod("second"), PodReason::AddressesExhausted)
    );
    assert!(event.note.contains("hold 1, 1 are in use"), "{}", event.note);
    assert_eq!(
        world
            .agent
            .numbers(world.now)
            .counters
            .exhausted
            .values()
            .sum::<u64>(),
        10
    );
    // Another reason, and another pod.
    add_annotated(&mut world, "second", named(&["192.0.2.1"])).unwrap_err();
    assert_eq!(world.events[1].reason, PodReason::AddressRefused);
    world.add("third").unwrap_err();
    assert_eq!(world.events[2].pod, pod("third"));
    world.wait(Duration::from_secs(301));
    world.add("third").unwrap_err();
    assert_eq!(world.events.len(), 4, "it lasts");
    world.assert_quiescent();
}

#[test]
fn an_event_that_the_server_does_not_take_is_told_by_the_next_add() {
    let mut world = small();
    world.add("first").unwrap();
    world.kube_down = true;
    world.add("second").unwrap_err();
    assert_eq!(world.events, []);
    world.kube_down = false;
    world.wait(Duration::from_secs(120));
    assert_eq!(world.events, [], "nothing keeps trying on its own");
    world.add("second").unwrap_err();
    assert_eq!(world.events.len(), 1);
    world.assert_quiescent();
}

#[test]
fn events_are_bounded_in_all_and_for_a_namespace_and_told_one_after_another() {
    let mut world = small();
    world.add("first").unwrap();
    let of = |namespace: usize, n: usize| {
        let mut add = add(&format!("p{namespace}-{n}"));
        if let Some(pod) = &mut add.pod {
            pod.namespace = format!("team-{namespace:02}");
        }
        add
    };
    for (namespace, n) in (0..20).flat_map(|namespace| (0..20).map(move |n| (namespace, n))) {
        let add = of(namespace, n);
        world.kube(KubeEvent::PodApplied(add.pod.clone().unwrap().into()));
        world.ask(CniCall::Add(add));
        assert!(world.kube_queue.len() <= 1, "one at a time");
    }
    world.run();
    assert_eq!(world.events.len(), 256);
    let of_first = world.events.iter().filter(|e| e.pod.namespace == "team-00");
    assert_eq!(of_first.count(), 16, "it leaves room for others");
    assert_eq!(world.agent.numbers(world.now).counters.events_dropped, 400 - 256);
    world.wait(Duration::from_secs(301));
    world.answer(CniCall::Add(of(19, 19))).unwrap_err();
    assert_eq!(world.events.last().unwrap().pod, of(19, 19).pod.unwrap());
    world.assert_quiescent();
}

/// Whoever may make pods in a namespace learns nothing of what runs in another.
#[test]
fn a_pod_is_not_told_whose_the_address_is_that_it_names() {
    let mut world = World::ready(0);
    add_annotated(&mut world, "secret", named(&["10.244.0.77"])).unwrap();
    let refused = add_annotated(&mut world, "other", named(&["10.244.0.77"])).unwrap_err();
    assert!(refused.msg.contains("10.244.0.77 is in use"), "{refused}");
    assert!(!refused.to_string().contains("secret"), "{refused}");
    assert!(!world.events[0].note.contains("secret"), "{:?}", world.events);
    assert_eq!(
        world.agent.status(world.now).attachments[0].container_id,
        "secret"
    );
}

#[test]
fn an_add_that_has_but_to_come_again_is_no_event() {
    let mut world = World::ready(0);
    add_annotated(&mut world, "old", named(&["10.244.0.77"])).unwrap();
    world.kernel.failing = Some(("RemovePodLink".into(), 16));
    world.ask(CniCall::Del(crate::world::attachment("old")));
    world.run();
    annotate(&mut world, "new", named(&["10.244.0.77"]));
    let request = world.ask(CniCall::Add(add("new")));
    world.wait(Duration::from_secs(11));
    assert_eq!(
        world.replies[&request].as_ref().unwrap_err().code,
        code::TRY_AGAIN
    );
    assert_eq!(world.events, []);
}

/// What is still sent to the last holder reaches nobody who names its address.
#[test]
fn a_named_address_that_was_another_namespaces_has_rested() {
    for (namespace, rests) in [("default", false), ("another", true)] {
        let mut world = World::ready(0);
        add_annotated(&mut world, "old", named(&["10.244.0.77"])).unwrap();
        world.del("old").unwrap();
        let mut new = add("new");
        let pod = PodRef {
            namespace: namespace.into(),
            ..pod("new")
        };
        new.pod = Some(pod.clone());
        let wants = named(&["10.244.0.77"]);
        world.kube(KubeEvent::PodApplied(PodMeta {
            wants,
            ..PodMeta::from(pod)
        }));
        let request = world.ask(CniCall::Add(new.clone()));
        world.run();
        assert_eq!(world.replies.contains_key(&request), !rests, "{namespace}");
        world.wait(Duration::from_secs(11));
        if rests {
            let told = world.replies[&request].clone().unwrap_err();
            assert_eq!(told.code, code::TRY_AGAIN);
            assert!(told.msg.contains("rests"), "{told}");
            world.wait(Duration::from_secs(10));
            let request = world.ask(CniCall::Add(new));
            world.wait(Duration::from_secs(9));
            assert!(world.replies[&request].is_ok(), "{:?}", world.replies[&request]);
        } else {
            assert!(world.replies[&request].is_ok());
        }
        world.assert_quiescent();
    }
}
