//! The timers of the whitepaper, section 6, on two devices under simulated time.

mod common;

use common::world::World;
use common::*;
use meshd_wireguard_proto::{DropReason, PeerConfig};

#[test]
fn a_packet_waits_for_its_handshake_and_arrives() {
    let mut world = World::mesh(2);
    for n in 0..5u8 {
        world.send(1, 2, &[n]);
    }
    world.run(secs(1));
    assert_eq!(world.payloads(2), [[0], [1], [2], [3], [4]]);
    world.send(2, 1, b"back");
    world.run(secs(1));
    assert_eq!(world.payloads(1), [b"back"]);
    assert_eq!((world.sent_of_kind(1), world.sent_of_kind(2)), (1, 1));
    for (device, peer) in [(1, 2), (2, 1)] {
        let stats = world.device(device).peer(&public(peer)).unwrap();
        assert!(stats.last_handshake.is_some());
    }
}

#[test]
fn what_waits_is_bounded_and_the_oldest_goes() {
    let mut world = World::mesh(2);
    world.network = Box::new(|_| vec![]);
    for n in 0..300u16 {
        world.send(1, 2, &n.to_be_bytes());
    }
    world.network = Box::new(|_| vec![common::world::LATENCY]);
    world.run(secs(6));
    let expected: Vec<Vec<u8>> = (172..300u16).map(|n| n.to_be_bytes().to_vec()).collect();
    assert_eq!(world.payloads(2), expected);
}

#[test]
fn under_steady_traffic_a_session_is_replaced_every_120_s_and_nothing_is_lost() {
    let mut world = World::mesh(2);
    for n in 0..1800u32 {
        world.send(1, 2, &n.to_be_bytes());
        world.send(2, 1, &n.to_be_bytes());
        world.run(millis(500));
    }
    let expected: Vec<Vec<u8>> = (0..1800u32).map(|n| n.to_be_bytes().to_vec()).collect();
    assert_eq!(world.payloads(2), expected);
    assert_eq!(world.payloads(1), expected);
    let initiations = world.times(1);
    // Both sides initiated at the start: both are initiators until one session outlives the other.
    assert!((8..=16).contains(&initiations.len()), "{initiations:?}");
    let within = |from, to| initiations.iter().filter(|t| **t >= from && **t < to).count();
    assert_eq!(within(millis(100), secs(120)), 0, "{initiations:?}");
    assert!(within(secs(120), secs(121)) > 0, "{initiations:?}");
    // The first two sessions were confirmed by what waited for them.
    assert_eq!(
        world.keepalives() + 2,
        world.sent_of_kind(2),
        "one to confirm each session, no more"
    );
}

#[test]
fn one_that_only_receives_replaces_its_session_before_it_expires() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(1));
    for n in 0..240u16 {
        world.send(2, 1, &n.to_be_bytes());
        world.run(secs(1));
    }
    assert_eq!(world.payloads(1).len(), 240);
    assert_eq!(world.sent_of_kind(1), 2);
}

#[test]
fn an_initiator_replaces_a_session_about_to_expire_when_it_hears_data() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(164));
    world.send(2, 1, b"early");
    world.run(millis(500));
    assert_eq!(world.sent_of_kind(1), 1);
    world.run(secs(1));
    world.send(2, 1, b"late");
    world.run(millis(500));
    assert_eq!(world.sent_of_kind(1), 2);
}

#[test]
fn an_initiation_that_must_wait_its_turn_is_sent_then() {
    let mut world = World::mesh(2);
    world.network = Box::new(|f| {
        if f.kind() == 1 {
            vec![common::world::LATENCY]
        } else {
            vec![]
        }
    });
    world.send(2, 1, b"answered, but the answer is lost");
    world.run(secs(1));
    assert_eq!(world.sent_of_kind(2), 1);
    world.devices.insert(2, World::member(2, 2, 79));
    world.network = Box::new(|_| vec![common::world::LATENCY]);
    world.send(1, 2, b"our turn");
    world.run(secs(5));
    assert_eq!(world.payloads(2), [b"our turn"]);
}

#[test]
fn an_unanswered_initiation_is_sent_again_for_90_s() {
    let mut world = World::mesh(2);
    world.network = Box::new(|_| vec![]);
    world.send(1, 2, b"lost");
    world.run(secs(300));
    let times = world.times(1);
    assert_eq!(times.len(), 19);
    for pair in times.windows(2) {
        let gap = pair[1] - pair[0];
        assert!(gap >= secs(5) && gap < millis(5334), "{gap:?}");
    }
    assert!(times[18] >= secs(90));
    // The next packet begins anew; what waited is gone.
    world.network = Box::new(|_| vec![common::world::LATENCY]);
    world.send(1, 2, b"found");
    world.run(secs(1));
    assert_eq!(world.payloads(2), [b"found"]);
}

#[test]
fn who_has_nothing_to_say_confirms_data_after_10_s() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"one way");
    world.run(secs(9));
    let before = world.sent.len();
    world.run(secs(2));
    let (at, keepalive) = &world.sent[before];
    assert!(keepalive.is_keepalive() && keepalive.from == endpoint(2));
    assert!(at.since(START.boot) >= secs(10));
    world.run(secs(600));
    assert_eq!(world.sent.len(), before + 1, "silence otherwise");
}

#[test]
fn data_without_answer_makes_a_new_handshake_after_15_s() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(1));
    world.send(2, 1, b"");
    world.run(millis(100));
    // The peer restarts: it knows nothing of the session.
    world.devices.insert(2, World::member(2, 2, 77));
    world.send(1, 2, b"into the void");
    world.run(secs(14));
    assert_eq!(world.sent_of_kind(1), 1);
    world.run(secs(2));
    assert_eq!(world.sent_of_kind(1), 2);
    world.send(1, 2, b"heard");
    world.run(secs(1));
    assert_eq!(world.payloads(2).last().unwrap(), b"heard");
}

#[test]
fn a_restarted_device_is_heard_at_once() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(20));
    let later = world.now;
    let mut restarted = common::device(2, 78);
    assert!(restarted.set_peer(later, public(1), config(1)));
    world.devices.insert(2, restarted);
    world.send(2, 1, b"from the new one");
    world.run(millis(100));
    world.send(1, 2, b"to the new one");
    world.run(millis(100));
    assert_eq!(world.payloads(1).last().unwrap(), b"from the new one");
    assert_eq!(world.payloads(2).last().unwrap(), b"to the new one");
}

#[test]
fn a_session_is_refused_after_180_s() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(1));
    // A message that takes three minutes; responses are lost so that no new session takes over.
    world.network = Box::new(|f| if f.kind() == 4 { vec![secs(179)] } else { vec![] });
    world.send(1, 2, b"late");
    world.run(secs(178));
    world.send(1, 2, b"too late");
    world.run(secs(1));
    assert_eq!(world.payloads(2), [&b""[..], b"late"]);
    world.run(secs(400));
    assert_eq!(world.payloads(2).len(), 2);
}

#[test]
fn an_idle_peer_keeps_no_keys_and_no_timers() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(1));
    assert!(world.device(1).poll_timeout().is_some());
    world.run(secs(560));
    assert_eq!(world.device(1).poll_timeout(), None);
    assert_eq!(world.device(2).poll_timeout(), None);
    let replayed = world.sent[0].1.clone();
    world.inject(replayed);
    world.run(secs(1));
    assert_eq!(
        world.sent_of_kind(2),
        1,
        "the stamp of the last initiation is remembered"
    );
    world.send(1, 2, b"again");
    world.run(secs(1));
    assert_eq!(world.payloads(2).last().unwrap(), b"again");
}

#[test]
fn a_kept_alive_peer_hears_from_us_regularly_and_for_ever() {
    let mut world = World::mesh(2);
    let kept = PeerConfig {
        keepalive: Some(25),
        ..config(2)
    };
    world.with(1, |now, device| device.set_peer(now, public(2), kept));
    world.run(secs(3600));
    let gaps: Vec<_> = world
        .sent
        .iter()
        .filter(|(_, f)| f.from == endpoint(1))
        .map(|(at, _)| *at)
        .collect();
    assert!(gaps.len() > 140);
    assert!(gaps.windows(2).all(|w| w[1].since(w[0]) <= secs(25)));
    assert_eq!(world.payloads(2).len(), 0);

    // Also one that cannot be reached for long.
    world.network = Box::new(|_| vec![]);
    world.run(secs(3600));
    world.network = Box::new(|_| vec![common::world::LATENCY]);
    world.sent.clear();
    world.run(secs(60));
    assert!(world.sent_of_kind(2) > 0);

    let off = PeerConfig {
        keepalive: Some(0),
        ..PeerConfig::default()
    };
    world.with(1, |now, device| device.set_peer(now, public(2), off));
    world.run(secs(700));
    world.sent.clear();
    world.run(secs(3600));
    assert_eq!(world.sent.len(), 0);
}

#[test]
fn a_wall_clock_that_jumps_back_stops_no_handshake() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"before");
    world.run(secs(600));
    world.now.wall = meshd_model::Wall(world.now.wall.0 - 86_400_000_000_000);
    world.send(1, 2, b"after");
    world.run(secs(1));
    assert_eq!(world.payloads(2), [&b"before"[..], b"after"]);
}

#[test]
fn without_endpoint_route_or_key_a_packet_is_dropped_with_its_reason() {
    let mut world = World::mesh(2);
    let nowhere = PeerConfig {
        allowed_ips: vec![net("10.0.9.0/24")],
        ..PeerConfig::default()
    };
    world.with(1, |now, device| device.set_peer(now, public(9), nowhere));
    let to = |n| packet(host(1), host(n), b"");
    assert_eq!(world.try_send(1, &to(9)), Err(DropReason::NoEndpoint));
    assert_eq!(world.try_send(1, &to(8)), Err(DropReason::NoRoute));
    assert_eq!(world.try_send(1, b"junk"), Err(DropReason::NotIp));
    assert_eq!(world.try_send(1, &to(2)[..19]), Err(DropReason::NotIp));
    world.with(1, |now, device| device.set_private_key(now, None));
    assert_eq!(world.try_send(1, &to(2)), Err(DropReason::NoPrivateKey));
    assert_eq!(world.sent.len(), 0);
}
