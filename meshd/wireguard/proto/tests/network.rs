//! Bad networks and hostile neighbours.

mod common;

use common::world::{Flight, LATENCY, World};
use common::*;
use meshd_wireguard_proto::{DropReason, PeerConfig};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A small generator of our own, for faults that the seed repeats.
fn random(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the network does: what arrives was sent, and arrives once; when the network heals, all arrives.
    #[test]
    fn loss_duplication_and_reordering(seed: u64, loss in 0u64..60) {
        let mut world = World::mesh(3);
        let mut dice = random(seed);
        world.network = Box::new(move |_| {
            let copies = if dice(100) < loss { 0 } else { 1 + dice(3) / 2 };
            (0..copies).map(|_| millis(1 + dice(400))).collect()
        });
        let mut sent = BTreeSet::new();
        for n in 0..400u32 {
            for (from, to) in [(1, 2), (2, 1), (3, 1), (2, 3)] {
                let payload = [&[from, to][..], &n.to_be_bytes()].concat();
                world.send(from, to, &payload);
                sent.insert((to, payload));
            }
            world.run(millis(700));
        }
        let arrived: Vec<(u8, Vec<u8>)> =
            world.delivered.iter().map(|(i, p)| (*i, p[20..].to_vec())).collect();
        let distinct: BTreeSet<_> = arrived.iter().cloned().collect();
        prop_assert_eq!(distinct.len(), arrived.len(), "a packet came out twice");
        prop_assert!(distinct.is_subset(&sent));
        let expected = sent.len() as u64 * (100 - loss) / 100;
        prop_assert!(arrived.len() as u64 > expected / 2, "{} of {}", arrived.len(), expected);

        world.network = Box::new(|_| vec![LATENCY]);
        world.run(secs(20));
        world.delivered.clear();
        for n in 0..100u32 {
            world.send(1, 2, &n.to_be_bytes());
            world.send(3, 2, &n.to_be_bytes());
            world.run(millis(700));
        }
        prop_assert_eq!(world.delivered.len(), 200);
    }

    #[test]
    fn junk_is_dropped(mut junk in prop::collection::vec(any::<u8>(), 0..2000), kind in 0u8..6) {
        let mut device = World::member(1, 3, 1);
        if let Some(first) = junk.first_mut() {
            *first = kind;
        }
        if let Some(reserved) = junk.get_mut(1..4) {
            reserved.fill(0);
        }
        prop_assert!(device.handle_datagram(START, endpoint(2), &mut junk).is_err());
        prop_assert_eq!(device.poll_transmit(), None);
        let _ = device.handle_packet(START, &junk);
    }

    /// A true exchange with one datagram changed in one place: it is dropped, and harms nothing.
    #[test]
    fn a_changed_datagram_is_dropped(which in 0usize..6, at: prop::sample::Index, flip in 1u8..=255, cut: bool) {
        let mut world = World::mesh(2);
        let mut count = 0;
        let hit = std::rc::Rc::new(std::cell::Cell::new(false));
        let note = hit.clone();
        world.network = Box::new(move |_| {
            count += 1;
            if count == which + 1 {
                note.set(true);
                return vec![];
            }
            vec![LATENCY]
        });
        world.send(1, 2, b"first");
        world.run(secs(1));
        world.send(2, 1, b"second");
        world.send(1, 2, b"third");
        world.run(secs(1));
        prop_assert!(hit.get() || which >= world.sent.len());
        let Some((_, true_one)) = world.sent.get(which).cloned() else {
            return Ok(());
        };
        let mut changed = true_one;
        let at = at.index(changed.bytes.len());
        // The last 16 bytes of a handshake message are its second MAC, looked at under load only.
        let is_mac2 = changed.kind() < 3 && at + 16 >= changed.bytes.len();
        if cut {
            changed.bytes.truncate(at);
        } else {
            changed.bytes[at] ^= flip;
        }
        let to = if changed.to == endpoint(1) { 1 } else { 2 };
        let outcome = world.with(to, |now, device| device.handle_datagram(now, changed.from, &mut changed.bytes));
        prop_assert!(outcome.is_err() || (is_mac2 && !cut), "{:?} at {}", outcome, at);
        world.network = Box::new(|_| vec![LATENCY]);
        world.run(secs(20));
        world.send(1, 2, b"fourth");
        world.run(secs(1));
        prop_assert_eq!(world.payloads(2).pop(), Some(b"fourth".to_vec()));
    }
}

#[test]
fn everything_said_once_and_said_again_changes_nothing() {
    let mut world = World::mesh(2);
    for n in 0..200u16 {
        world.send(1, 2, &n.to_be_bytes());
        world.send(2, 1, &n.to_be_bytes());
        world.run(secs(1));
    }
    let delivered = world.delivered.len();
    assert_eq!(delivered, 400);
    let recorded: Vec<Flight> = world.sent.iter().map(|(_, f)| f.clone()).collect();
    let endpoints = |world: &mut World| {
        [(1, 2), (2, 1)].map(|(device, peer)| world.device(device).peer(&public(peer)).unwrap().endpoint)
    };
    let before = endpoints(&mut world);
    let answers = world.sent.len();
    for flight in recorded {
        // From where an attacker sits, who would like the answers.
        world.inject(Flight {
            from: "203.0.113.66:666".parse().unwrap(),
            ..flight
        });
    }
    world.run(millis(200));
    assert_eq!(world.delivered.len(), delivered);
    assert_eq!(endpoints(&mut world), before);
    assert_eq!(world.sent.len(), answers, "nothing is answered");
}

#[test]
fn both_initiate_at_once_and_no_packet_is_lost() {
    let mut world = World::mesh(2);
    for round in 0..6u8 {
        world.send(1, 2, &[round]);
        world.send(2, 1, &[round]);
        world.run(millis(100));
        assert_eq!(world.payloads(1).len(), usize::from(round) + 1);
        assert_eq!(world.payloads(2).len(), usize::from(round) + 1);
        // Until the sessions are stale, with traffic each way in the very same instants.
        world.run(secs(125));
    }
}

#[test]
fn two_new_sessions_at_once_cut_off_no_message_of_the_old_one() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.send(2, 1, b"");
    world.run(secs(121));
    world.delivered.clear();
    // Data is overtaken by both handshakes, which it sets off itself.
    world.network = Box::new(|f| vec![if f.kind() == 4 { millis(200) } else { LATENCY }]);
    world.send(1, 2, b"slow");
    world.send(2, 1, b"slow");
    world.run(secs(1));
    assert_eq!(world.sent_of_kind(2), 4);
    assert_eq!(
        (world.payloads(1), world.payloads(2)),
        (vec![b"slow".to_vec()], vec![b"slow".to_vec()])
    );
}

#[test]
fn a_peer_that_roams_is_followed_only_on_its_own_word() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"");
    world.run(secs(1));
    let elsewhere = "198.51.100.9:4242".parse().unwrap();
    world.addresses.insert(1, elsewhere);
    world.send(2, 1, b"lost: nobody lives there any more");
    world.run(secs(1));
    assert_eq!(world.payloads(1).len(), 0);
    world.send(1, 2, b"here");
    world.run(secs(1));
    world.send(2, 1, b"there");
    world.run(secs(1));
    assert_eq!(world.payloads(1), [b"there"]);
    assert_eq!(
        world.device(2).peer(&public(1)).unwrap().endpoint,
        Some(elsewhere)
    );
    let mut forged = vec![0; 148];
    forged[0] = 1;
    let from: std::net::SocketAddr = "203.0.113.66:666".parse().unwrap();
    let refused = world.with(2, |now, device| device.handle_datagram(now, from, &mut forged));
    assert_eq!(refused, Err(DropReason::Unauthentic));
    assert_eq!(
        world.device(2).peer(&public(1)).unwrap().endpoint,
        Some(elsewhere)
    );
}

#[test]
fn a_peer_sends_from_its_own_addresses_only() {
    let mut world = World::mesh(3);
    world.send(1, 2, b"true");
    world
        .try_send(1, &packet(host(3), host(2), b"as another peer"))
        .unwrap();
    world
        .try_send(1, &packet("8.8.8.8".parse().unwrap(), host(2), b"as nobody"))
        .unwrap();
    world
        .try_send(1, &packet(host6(1), host6(2), b"true too"))
        .unwrap();
    world.run(secs(1));
    assert_eq!(world.delivered.len(), 2);
    assert_eq!(world.payloads(2)[0], b"true");
}

#[test]
fn padding_is_taken_off_and_stays_within_the_mtu() {
    let mut world = World::mesh(2);
    world.with(1, |_, device| device.set_mtu(100));
    for length in [1, 12, 60, 75, 80, 200] {
        world.send(1, 2, &vec![7; length]);
        world.run(secs(1));
        assert_eq!(world.payloads(2).last().unwrap().len(), length);
    }
    let lengths: Vec<usize> = world
        .sent
        .iter()
        .filter(|(_, f)| f.kind() == 4 && !f.is_keepalive())
        .map(|(_, f)| f.bytes.len() - 32)
        .collect();
    assert_eq!(lengths, [32, 32, 80, 96, 100, 220]);
}

#[test]
fn an_allowed_ip_belongs_to_who_got_it_last() {
    let mut world = World::mesh(3);
    let taken = PeerConfig {
        allowed_ips: vec![net("10.0.2.0/24")],
        ..PeerConfig::default()
    };
    world.with(1, |now, device| device.set_peer(now, public(3), taken));
    let of = |world: &mut World, n| world.device(1).peer(&public(n)).unwrap().allowed_ips;
    assert_eq!(of(&mut world, 2), [net("fd00:2::/64")]);
    assert_eq!(
        of(&mut world, 3),
        [net("10.0.2.0/24"), net("10.0.3.0/24"), net("fd00:3::/64")]
    );
    world.send(1, 2, b"");
    world.run(secs(1));
    assert_eq!(world.payloads(2).len(), 0);
    assert_eq!(world.payloads(3).len(), 1);

    let less = PeerConfig {
        remove_allowed_ips: vec![net("10.0.2.0/24"), net("fd00:2::/64")],
        ..PeerConfig::default()
    };
    world.with(1, |now, device| device.set_peer(now, public(3), less));
    assert_eq!(
        of(&mut world, 2),
        [net("fd00:2::/64")],
        "one peer cannot take from another by removing"
    );
    assert_eq!(
        world.try_send(1, &packet(host(1), host(2), b"")),
        Err(DropReason::NoRoute)
    );
    assert!(world.device(1).remove_peer(&public(3)));
    assert!(!world.device(1).remove_peer(&public(3)));
    assert_eq!(
        world.try_send(1, &packet(host(1), host(3), b"")),
        Err(DropReason::NoRoute)
    );
}

#[test]
fn own_key_and_keys_of_low_order_make_no_session() {
    let mut world = World::mesh(2);
    assert!(!world.with(1, |now, device| device.set_peer(now, public(1), config(7))));
    // The point of order one: every shared secret with it is zero.
    let mut low = [0; 32];
    low[0] = 1;
    let low = meshd_model::PublicKey(low);
    assert!(world.with(1, |now, device| device.set_peer(now, low, config(7))));
    world.send(1, 7, b"");
    world.run(secs(60));
    assert_eq!(world.sent.len(), 0);
    world.with(1, |now, device| device.set_private_key(now, Some(private(2))));
    assert!(world.device(1).peer(&public(2)).is_none());
}

#[test]
fn a_new_private_key_ends_the_sessions() {
    let mut world = World::mesh(2);
    world.send(1, 2, b"old");
    world.run(secs(1));
    world.with(1, |now, device| device.set_private_key(now, Some(private(5))));
    world.with(2, |now, device| device.set_peer(now, public(5), config(1)));
    world.send(1, 2, b"new");
    world.run(secs(1));
    assert_eq!(world.payloads(2), [b"old", b"new"]);
    assert_eq!(world.device(2).peer(&public(1)).unwrap().allowed_ips, []);
}

#[test]
fn under_load_only_who_holds_a_cookie_is_answered() {
    let mut world = World::mesh(3);
    world.device(2).set_load_threshold(0);
    world.send(1, 2, b"patience");
    world.run(secs(1));
    assert_eq!((world.sent_of_kind(2), world.sent_of_kind(3)), (0, 1));
    world.run(secs(6));
    assert_eq!((world.sent_of_kind(2), world.sent_of_kind(3)), (1, 1));
    assert_eq!(world.payloads(2), [b"patience"]);
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = |seed| {
        let mut world = World::mesh(2);
        world.devices.insert(1, World::member(1, 2, seed));
        for n in 0..150u8 {
            world.send(1, 2, &[n]);
            world.run(secs(1));
        }
        world
            .sent
            .iter()
            .map(|(at, f)| (*at, f.bytes.clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}
