//! Devices on a network that can delay, lose, duplicate and reorder, under simulated time.

use super::*;
use std::collections::{BTreeMap, VecDeque};

/// How long a datagram takes.
pub const LATENCY: Duration = Duration::from_millis(10);

/// What the network does with a datagram: after how long each copy of it arrives.
pub type Network = Box<dyn FnMut(&Flight) -> Vec<Duration>>;

/// A datagram on its way.
#[derive(Clone, Debug)]
pub struct Flight {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

impl Flight {
    /// 1 for an initiation, 2 for a response, 3 for a cookie, 4 for data.
    pub fn kind(&self) -> u8 {
        self.bytes[0]
    }

    pub fn is_keepalive(&self) -> bool {
        self.kind() == 4 && self.bytes.len() == 32
    }
}

pub struct World {
    pub now: Now,
    pub devices: BTreeMap<u8, Device>,
    /// Where each device is reached; a test moves it to make it roam.
    pub addresses: BTreeMap<u8, SocketAddr>,
    /// IP packets that came out, with the device they came out of.
    pub delivered: Vec<(u8, Vec<u8>)>,
    /// All datagrams that were sent, with the time.
    pub sent: Vec<(Boot, Flight)>,
    pub network: Network,
    in_flight: BTreeMap<(Boot, u64), Flight>,
    count: u64,
}

impl World {
    /// Devices 1 to `n`, each with all others as peers.
    pub fn mesh(n: u8) -> Self {
        let mut world = Self {
            now: START,
            devices: BTreeMap::new(),
            addresses: (1..=n).map(|i| (i, endpoint(i))).collect(),
            delivered: Vec::new(),
            sent: Vec::new(),
            network: Box::new(|_| vec![LATENCY]),
            in_flight: BTreeMap::new(),
            count: 0,
        };
        for i in 1..=n {
            world.devices.insert(i, World::member(i, n, i));
        }
        world
    }

    /// Device `i` of a mesh of `n`.
    pub fn member(i: u8, n: u8, seed: u8) -> Device {
        let mut device = device(i, seed);
        for peer in (1..=n).filter(|peer| *peer != i) {
            assert!(device.set_peer(START, public(peer), config(peer)));
        }
        device
    }

    pub fn device(&mut self, i: u8) -> &mut Device {
        self.devices.get_mut(&i).unwrap()
    }

    /// A packet from a host behind one device to a host behind another.
    pub fn send(&mut self, from: u8, to: u8, payload: &[u8]) {
        self.try_send(from, &packet(host(from), host(to), payload))
            .unwrap();
    }

    pub fn try_send(&mut self, from: u8, packet: &[u8]) -> Result<(), meshd_wireguard_proto::DropReason> {
        let now = self.now;
        let result = self.device(from).handle_packet(now, packet);
        self.collect(from);
        result
    }

    /// Lets something happen to a device, then takes what it puts out.
    pub fn with<T>(&mut self, i: u8, act: impl FnOnce(Now, &mut Device) -> T) -> T {
        let now = self.now;
        let result = act(now, self.device(i));
        self.collect(i);
        result
    }

    fn collect(&mut self, i: u8) {
        let from = self.addresses[&i];
        let device = self.devices.get_mut(&i).unwrap();
        while let Some(packet) = device.poll_packet() {
            self.delivered.push((i, packet));
        }
        while let Some(transmit) = device.poll_transmit() {
            let flight = Flight {
                from,
                to: transmit.dst,
                bytes: transmit.bytes,
            };
            for delay in (self.network)(&flight) {
                self.count += 1;
                self.in_flight
                    .insert((self.now.boot + delay, self.count), flight.clone());
            }
            self.sent.push((self.now.boot, flight));
        }
    }

    /// Puts a datagram into the network.
    pub fn inject(&mut self, flight: Flight) {
        self.count += 1;
        self.in_flight
            .insert((self.now.boot + LATENCY, self.count), flight);
    }

    /// Lets time pass.
    pub fn run(&mut self, time: Duration) {
        let end = self.now.boot + time;
        for _ in 0..1_000_000 {
            let arrival = self.in_flight.first_key_value().map(|((at, _), _)| *at);
            let timers = self.devices.values().filter_map(Device::poll_timeout).min();
            let next = [arrival, timers].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.advance(end);
                return;
            };
            self.advance(next);
            self.fire_timers();
            self.deliver();
        }
        panic!("the world does not come to rest");
    }

    fn advance(&mut self, to: Boot) {
        self.now = self.now + to.since(self.now.boot);
    }

    fn fire_timers(&mut self) {
        let ids: Vec<u8> = self.devices.keys().copied().collect();
        for i in ids {
            if self.devices[&i]
                .poll_timeout()
                .is_some_and(|at| at <= self.now.boot)
            {
                self.with(i, |now, device| device.handle_timeout(now));
                let left = self.devices[&i].poll_timeout();
                assert!(left.is_none_or(|at| at > self.now.boot), "a timer stays due");
            }
        }
    }

    fn deliver(&mut self) {
        let due = (self.now.boot, u64::MAX);
        let later = self.in_flight.split_off(&due);
        let arrived: VecDeque<Flight> = std::mem::replace(&mut self.in_flight, later)
            .into_values()
            .collect();
        for mut flight in arrived {
            let to = self
                .addresses
                .iter()
                .find(|(_, a)| **a == flight.to)
                .map(|(i, _)| *i);
            if let Some(i) = to {
                self.with(i, |now, device| {
                    let _ = device.handle_datagram(now, flight.from, &mut flight.bytes);
                });
            }
        }
    }

    /// Payloads that came out of a device, in order.
    pub fn payloads(&self, i: u8) -> Vec<Vec<u8>> {
        let of = |(at, packet): &(u8, Vec<u8>)| (*at == i).then(|| packet[20..].to_vec());
        self.delivered.iter().filter_map(of).collect()
    }

    /// How many datagrams of a kind were sent.
    pub fn sent_of_kind(&self, kind: u8) -> usize {
        self.sent.iter().filter(|(_, f)| f.kind() == kind).count()
    }

    pub fn keepalives(&self) -> usize {
        self.sent.iter().filter(|(_, f)| f.is_keepalive()).count()
    }

    /// Times from the start at which datagrams of a kind were sent.
    pub fn times(&self, kind: u8) -> Vec<Duration> {
        let of = |(at, f): &(Boot, Flight)| (f.kind() == kind).then(|| at.since(START.boot));
        self.sent.iter().filter_map(of).collect()
    }
}
