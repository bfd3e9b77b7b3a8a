//! The allocator beside a plain set that enumerates every address.

use ipnetwork::IpNetwork;
use meshd_ipam::allocator::FREED_MAX;
use meshd_ipam::{Allocator, AlreadyTaken, Exhausted, Refused};
use meshd_model::Boot;
use meshd_model::net::Family;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// What the allocator ought to do, said in the simplest way.
struct Plain {
    rest: Duration,
    ranges: Vec<IpNetwork>,
    withheld: Vec<IpNetwork>,
    /// Every address that may be handed out, in order.
    usable: [Vec<IpAddr>; 2],
    in_use: BTreeSet<IpAddr>,
    freed: BTreeMap<IpAddr, Boot>,
}

impl Plain {
    fn new(rest: Duration) -> Self {
        Self {
            rest,
            ranges: Vec::new(),
            withheld: Vec::new(),
            usable: [Vec::new(), Vec::new()],
            in_use: BTreeSet::new(),
            freed: BTreeMap::new(),
        }
    }

    fn set_ranges(&mut self, ranges: Vec<IpNetwork>) {
        self.ranges = ranges;
        self.enumerate_all();
    }

    fn set_withheld(&mut self, withheld: Vec<IpNetwork>) {
        self.withheld = withheld;
        self.enumerate_all();
    }

    fn enumerate_all(&mut self) {
        self.usable = [Family::V4, Family::V6].map(|family| self.enumerate(family));
    }

    fn usable(&self, family: Family) -> &[IpAddr] {
        &self.usable[family as usize]
    }

    fn enumerate(&self, family: Family) -> Vec<IpAddr> {
        let ranges = self.ranges.iter().filter(|net| size(**net) >= 4);
        let all: Vec<IpAddr> = ranges
            .clone()
            .filter(|net| Family::of(net.ip()) == family && self.is_outermost(**net))
            .flat_map(IpNetwork::iter)
            .collect();
        let reserved: BTreeSet<IpAddr> = ranges.flat_map(|net| reserved(*net)).collect();
        let mut seen = BTreeSet::new();
        all.into_iter()
            .filter(|address| !reserved.contains(address) && seen.insert(*address))
            .filter(|address| !self.withheld.iter().any(|net| net.contains(*address)))
            .collect()
    }

    fn allocate_exact(&mut self, address: IpAddr) -> Result<(), Refused> {
        let around = || {
            self.ranges
                .iter()
                .filter(|net| size(**net) >= 4 && net.contains(address))
        };
        if around().count() == 0 {
            return Err(Refused::OutOfRange(address));
        }
        if around().any(|net| reserved(*net).contains(&address)) {
            return Err(Refused::Own(address));
        }
        self.take(address).map_err(|_| Refused::InUse(address))
    }

    fn is_outermost(&self, net: IpNetwork) -> bool {
        let wider = |other: &&IpNetwork| other.prefix() < net.prefix() && other.contains(net.ip());
        !self.ranges.iter().any(|other| wider(&other))
    }

    fn allocate(&mut self, now: Boot, family: Family) -> Result<IpAddr, Exhausted> {
        self.forget(now, family);
        let usable = &self.usable[family as usize];
        let fresh = usable
            .iter()
            .find(|address| !self.in_use.contains(address) && !self.freed.contains_key(address));
        let oldest = usable
            .iter()
            .filter_map(|address| Some((*self.freed.get(address)?, *address)))
            .filter(|(since, _)| now.since(*since) >= self.rest)
            .min();
        let Some(address) = fresh.copied().or(oldest.map(|(_, address)| address)) else {
            let count = |test: &dyn Fn(&IpAddr) -> bool| usable.iter().filter(|a| test(a)).count() as u128;
            return Err(Exhausted {
                family,
                capacity: usable.len() as u128,
                in_use: count(&|a| self.in_use.contains(a)),
                resting: count(&|a| self.freed.contains_key(a)),
            });
        };
        self.freed.remove(&address);
        self.in_use.insert(address);
        Ok(address)
    }

    fn take(&mut self, address: IpAddr) -> Result<(), AlreadyTaken> {
        self.freed.remove(&address);
        self.in_use
            .insert(address)
            .then_some(())
            .ok_or(AlreadyTaken(address))
    }

    fn is_occupied(&self, now: Boot, prefix: IpNetwork) -> bool {
        let rests = |since: &Boot| now.since(*since) < self.rest;
        let freed = self
            .freed
            .iter()
            .filter(|(_, since)| rests(since))
            .map(|(a, _)| a);
        self.in_use.iter().chain(freed).any(|a| prefix.contains(*a))
    }

    fn release(&mut self, now: Boot, address: IpAddr) -> bool {
        self.forget(now, Family::of(address));
        let held = self.in_use.remove(&address);
        if held {
            self.freed.insert(address, now);
        }
        held
    }

    /// What is not of the ranges is remembered only while it rests.
    fn forget(&mut self, now: Boot, family: Family) {
        let (rest, usable) = (self.rest, &self.usable[family as usize]);
        self.freed.retain(|address, since| {
            Family::of(*address) != family || usable.contains(address) || now.since(*since) < rest
        });
    }
}

fn size(net: IpNetwork) -> u128 {
    let bits = if net.is_ipv4() { 32 } else { 128 };
    1 << (bits - net.prefix())
}

fn reserved(net: IpNetwork) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = net.iter().take(2).collect();
    if let IpNetwork::V4(net) = net {
        addresses.push(net.broadcast().into());
    }
    addresses
}

#[derive(Clone, Debug)]
enum Step {
    SetRanges(Vec<IpNetwork>),
    SetWithheld(Vec<IpNetwork>),
    Allocate(Family),
    AllocateExact(IpAddr),
    Take(IpAddr),
    /// Of those in use, the one at this place.
    Release(prop::sample::Index),
    ReleaseWhatever(IpAddr),
    Wait(Duration),
    IsOccupied(IpNetwork),
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

/// Addresses from a small space, so that ranges nest, repeat and touch.
fn any_address() -> impl Strategy<Value = IpAddr> {
    let v4 = (0u8..64).prop_map(|low| IpAddr::from(Ipv4Addr::new(10, 0, 0, low)));
    let v6 = (0u16..64).prop_map(|low| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low)));
    prop_oneof![v4, v6]
}

/// Canonical, from 64 addresses down to one.
fn any_range() -> impl Strategy<Value = IpNetwork> {
    (any_address(), 0u8..=6).prop_map(|(address, bits)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        meshd_model::net::canonical(IpNetwork::new(address, longest - bits).unwrap())
    })
}

fn any_ranges() -> impl Strategy<Value = Vec<IpNetwork>> {
    prop::collection::vec(any_range(), 0..6)
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => any_ranges().prop_map(Step::SetRanges),
        1 => any_ranges().prop_map(Step::SetWithheld),
        4 => any_address().prop_map(Step::AllocateExact),
        20 => family().prop_map(Step::Allocate),
        4 => any_address().prop_map(Step::Take),
        12 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => any_address().prop_map(Step::ReleaseWhatever),
        4 => any_range().prop_map(Step::IsOccupied),
        // To the very end of a rest.
        2 => Just(Step::Wait(Duration::from_secs(30))),
        6 => (0u64..40).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
    ]
}

fn snapshot(allocator: &Allocator) -> Allocator {
    let json: Allocator = serde_json::from_slice(&serde_json::to_vec(allocator).unwrap()).unwrap();
    let mut bytes = Vec::new();
    ciborium::into_writer(allocator, &mut bytes).unwrap();
    let cbor: Allocator = ciborium::from_reader(bytes.as_slice()).unwrap();
    assert_eq!(json, cbor);
    json
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_allocator_does_what_the_plain_set_does(
        first in any_ranges(),
        steps in prop::collection::vec(any_step(), 1..200),
    ) {
        let rest = Duration::from_secs(30);
        let mut now = Boot(1);
        let mut allocator = Allocator::new(rest);
        allocator.set_ranges(&first);
        let mut plain = Plain::new(rest);
        plain.set_ranges(first);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::SetRanges(ranges) => {
                    allocator.set_ranges(&ranges);
                    plain.set_ranges(ranges);
                }
                Step::Allocate(family) => {
                    let holders = plain.in_use.clone();
                    let given = allocator.allocate(now, family);
                    prop_assert_eq!(given, plain.allocate(now, family));
                    if let Ok(address) = given {
                        prop_assert!(!holders.contains(&address), "{} was handed out twice", address);
                        let around = plain.ranges.iter().filter(|net| size(**net) >= 4 && net.contains(address));
                        prop_assert!(around.clone().count() > 0, "{} is of no range", address);
                        for net in around {
                            prop_assert!(!reserved(*net).contains(&address), "{} is reserved in {}", address, net);
                        }
                    }
                }
                Step::SetWithheld(withheld) => {
                    allocator.set_withheld(&withheld);
                    plain.set_withheld(withheld);
                }
                Step::AllocateExact(address) => {
                    prop_assert_eq!(allocator.allocate_exact(address), plain.allocate_exact(address));
                }
                Step::Take(address) => prop_assert_eq!(allocator.take(address), plain.take(address)),
                Step::Release(which) => {
                    let held: Vec<IpAddr> = plain.in_use.iter().copied().collect();
                    if !held.is_empty() {
                        let address = *which.get(&held);
                        prop_assert!(allocator.release(now, address));
                        plain.release(now, address);
                    }
                }
                Step::ReleaseWhatever(address) => {
                    prop_assert_eq!(allocator.release(now, address), plain.release(now, address));
                }
                Step::Wait(time) => now = now + time,
                Step::IsOccupied(prefix) => {
                    prop_assert_eq!(allocator.is_occupied(now, prefix), plain.is_occupied(now, prefix));
                }
            }
            for address in plain.freed.keys() {
                let host = IpNetwork::from(*address);
                prop_assert_eq!(allocator.is_occupied(now, host), plain.is_occupied(now, host));
            }
            for family in [Family::V4, Family::V6] {
                let counts = allocator.counts(family);
                let in_use = plain.in_use.iter().filter(|a| Family::of(**a) == family).count();
                prop_assert_eq!(counts.in_use, in_use as u128);
                let usable = plain.usable(family);
                prop_assert_eq!(counts.capacity, usable.len() as u128);
                let freed: Vec<_> = usable.iter().filter_map(|a| plain.freed.get(a)).collect();
                prop_assert_eq!(counts.freed, freed.len() as u128);
                let resting = freed.iter().filter(|since| now.since(***since) < rest).count();
                let available = usable.len().saturating_sub(in_use + resting);
                prop_assert_eq!(allocator.available(now, family), available as u128);
                prop_assert_eq!(allocator.next_rested(family), freed.into_iter().min().map(|since| *since + rest));
            }
            if number % 8 == 0 {
                let restored = snapshot(&allocator);
                prop_assert_eq!(&restored, &allocator);
                allocator = restored;
            }
        }
    }
}

fn nets(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn with_ranges(texts: &[&str]) -> Allocator {
    let mut allocator = Allocator::new(Duration::from_secs(30));
    allocator.set_ranges(&nets(texts));
    allocator
}

#[test]
fn a_usual_dual_stack_node() {
    let mut allocator = with_ranges(&["10.244.1.0/24", "fd00:244:0:1::/64"]);
    let mut give = |family| allocator.allocate(Boot(0), family).map(|a| a.to_string());
    assert_eq!(give(Family::V4).as_deref(), Ok("10.244.1.2"));
    assert_eq!(give(Family::V6).as_deref(), Ok("fd00:244:0:1::2"));
    assert_eq!((2..254).filter(|_| give(Family::V4).is_ok()).count(), 252);
    let exhausted = give(Family::V4).unwrap_err();
    assert_eq!(
        exhausted.to_string(),
        "no IPv4 address is free: the node's pod CIDRs hold 253, 253 are in use, 0 were freed a moment ago"
    );
}

#[test]
fn without_ranges_nothing_is_handed_out_but_leases_are_taken() {
    let mut allocator = with_ranges(&[]);
    assert_eq!(allocator.allocate(Boot(0), Family::V4).unwrap_err().capacity, 0);
    let address = "10.244.1.2".parse().unwrap();
    assert_eq!(allocator.take(address), Ok(()));
    assert_eq!(allocator.take(address), Err(AlreadyTaken(address)));
    allocator.set_ranges(&nets(&["10.244.1.0/29"]));
    assert_eq!(
        allocator.allocate(Boot(0), Family::V4),
        Ok("10.244.1.3".parse().unwrap())
    );
}

#[test]
fn the_widest_prefixes_do_not_overflow() {
    let mut allocator = with_ranges(&["0.0.0.0/0", "::/0"]);
    assert_eq!(allocator.counts(Family::V4).capacity, (1 << 32) - 3);
    assert_eq!(allocator.counts(Family::V6).capacity, u128::MAX - 1);
    let last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap();
    assert_eq!(allocator.take(last), Ok(()));
    assert_eq!(
        allocator.allocate(Boot(0), Family::V6),
        Ok("::2".parse().unwrap())
    );
    allocator.set_ranges(&nets(&["::/1", "8000::/1"]));
    assert_eq!(allocator.counts(Family::V6).capacity, u128::MAX - 3);
}

/// Ten thousand pods a day for weeks: the memory of a /64 stays bounded, and a reused address has rested.
#[test]
fn a_large_prefix_costs_bounded_memory() {
    let mut allocator = with_ranges(&["fd00::/64"]);
    let mut now = Boot(0);
    let mut freed: VecDeque<(IpAddr, Boot)> = VecDeque::new();
    for _ in 0..10 * FREED_MAX {
        let address = allocator.allocate(now, Family::V6).unwrap();
        match freed.front() {
            Some((oldest, since)) if *oldest == address => {
                assert!(
                    now.since(*since) >= Duration::from_secs(30),
                    "{address} did not rest"
                );
                freed.pop_front();
            }
            first => assert!(freed.len() < FREED_MAX, "{address} came before {first:?}"),
        }
        now = now + Duration::from_secs(8);
        assert!(allocator.release(now, address));
        freed.push_back((address, now));
    }
    assert_eq!(allocator.counts(Family::V6).freed, FREED_MAX as u128);
    assert_eq!(snapshot(&allocator), allocator);
}

/// A range that is taken away and comes back forgets no holder and no rest.
#[test]
fn holders_and_rests_outlive_their_range() {
    let mut allocator = with_ranges(&["10.0.0.0/29"]);
    let first = allocator.allocate(Boot(0), Family::V4).unwrap();
    let second = allocator.allocate(Boot(0), Family::V4).unwrap();
    allocator.set_ranges(&nets(&["10.9.0.0/29"]));
    allocator.release(Boot(0), second);
    allocator.set_ranges(&nets(&["10.0.0.0/29"]));
    let soon: Vec<IpAddr> = (0..5)
        .map_while(|_| allocator.allocate(Boot(1), Family::V4).ok())
        .collect();
    assert_eq!(soon.len(), 3);
    assert!(!soon.contains(&first) && !soon.contains(&second), "{soon:?}");
    let rested = Boot(0) + Duration::from_secs(30);
    assert_eq!(allocator.next_rested(Family::V4), Some(rested));
    assert_eq!(allocator.allocate(rested, Family::V4), Ok(second));
}

#[test]
fn what_is_withheld_is_handed_out_by_name_only() {
    let mut allocator = with_ranges(&["10.244.1.0/24", "fd00:244:0:1::/64"]);
    allocator.set_withheld(&nets(&[
        "10.244.1.0/28",
        "10.244.1.4/30",
        "fd00:244:0:1::/65",
        "10.9.0.0/16",
    ]));
    let first = allocator.allocate(Boot(0), Family::V4);
    assert_eq!(first, Ok("10.244.1.16".parse().unwrap()));
    // Past half of a /64 in one step.
    let first = allocator.allocate(Boot(0), Family::V6);
    assert_eq!(first, Ok("fd00:244:0:1:8000::".parse().unwrap()));
    assert_eq!(allocator.counts(Family::V4).capacity, 256 - 16 - 1);
    assert_eq!(allocator.counts(Family::V6).capacity, 1 << 63);

    let exact = |allocator: &mut Allocator, text: &str| allocator.allocate_exact(text.parse().unwrap());
    assert_eq!(exact(&mut allocator, "10.244.1.7"), Ok(()));
    for (bad, said) in [
        ("10.244.1.7", "in use"),
        ("10.244.1.0", "the network's own"),
        ("10.244.1.1", "overlay address"),
        ("10.244.1.255", "broadcast"),
        ("10.9.0.7", "not among the node's pod CIDRs"),
    ] {
        let refused = exact(&mut allocator, bad).unwrap_err().to_string();
        assert!(refused.contains(said) && refused.contains(bad), "{refused}");
    }
    // By name, it need not rest; otherwise it is not to be had, rested or not.
    assert!(allocator.release(Boot(0), "10.244.1.7".parse().unwrap()));
    assert_eq!(exact(&mut allocator, "10.244.1.7"), Ok(()));
    assert!(allocator.release(Boot(0), "10.244.1.7".parse().unwrap()));
    let later = Boot(0) + Duration::from_secs(3600);
    let rest: Vec<_> = (0..300)
        .map_while(|_| allocator.allocate(later, Family::V4).ok())
        .collect();
    assert_eq!(rest.len(), 256 - 16 - 1 - 1);
    assert!(!rest.contains(&"10.244.1.7".parse().unwrap()));
    allocator.set_withheld(&[]);
    assert_eq!(
        allocator.allocate(later, Family::V4),
        Ok("10.244.1.2".parse().unwrap())
    );
}
