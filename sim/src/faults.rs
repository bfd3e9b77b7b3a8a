//! What whoever drives the simulation does to nodes and links, besides letting time pass.

use crate::kernel::ops::Fault;
use crate::nat::Nat;
use crate::sim::{Sim, What};
use crate::trace::Kind;
use crate::underlay::Link;
use meshd_apiserver::Request;
use meshd_core::{Event, KernelEvent};
use serde_json::json;
use std::net::IpAddr;
use std::time::Duration;

/// How long a driver takes to notice a change of its kernel, in nanoseconds.
const SETTLE: u64 = 100_000_000;
/// The move whose addresses are those of a node's NAT.
const NAT_MOVE: u32 = 7;

impl Sim {
    /// Gives a node another key, by number; nodes with the same number have the same key. Node 0 has key 0 and so on,
    /// until told otherwise. An agent that runs keeps the key that it was started with.
    pub fn set_key(&mut self, node: usize, key: u64) {
        self.note(node, &format!("key {key}"));
        self.nodes[node].key = key;
    }

    /// Operations of the node's kernel to come meet this fault.
    pub fn add_fault(&mut self, node: usize, fault: Fault) {
        self.note(node, &format!("{fault:?}"));
        self.nodes[node].kernel.faults.push(fault);
    }

    /// Kills the node's agent this much later, whatever it does then.
    pub fn kill_agent_in(&mut self, node: usize, after: Duration) {
        self.queue.push(self.now + Sim::nanos(after), What::Kill { node });
    }

    /// Starts the node's agent this much later.
    pub fn start_agent_in(&mut self, node: usize, after: Duration) {
        self.queue
            .push(self.now + Sim::nanos(after), What::Start { node });
    }

    /// The machine goes and another comes under its name and addresses: an empty kernel and store, another key, a
    /// Node with a new UID. Its agent does not run yet; its pods are gone.
    ///
    /// # Errors
    /// What the API server answered.
    pub fn reinstall(&mut self, node: usize, key: u64) -> Result<(), String> {
        self.kill_agent(node);
        self.note(node, &format!("reinstalled with key {key}"));
        let epoch = self.nodes[node].epoch;
        let name = self.nodes[node].name.clone();
        self.nodes[node] = crate::make::node(&self.config, node, epoch);
        self.nodes[node].epoch = epoch;
        self.nodes[node].key = key;
        self.admin(Request::delete(format!("/api/v1/nodes/{name}")))?;
        self.create_node(node)
    }

    /// The node goes down and comes up: its kernel is as after a boot, no pod is left, and its lease store is of another
    /// boot, which is as good as none. It keeps its key and its Node; its agent does not run yet.
    pub fn reboot(&mut self, node: usize) {
        self.kill_agent(node);
        self.note(node, "rebooted");
        let numbers = [node as u64, self.nodes[node].epoch, self.now];
        let tunnel = crate::make::tunnel(&self.config, &numbers, self.stamp());
        let it = &mut self.nodes[node];
        let mtu = it.kernel.underlay_mtu;
        it.kernel = crate::make::kernel(tunnel);
        it.store.clear();
        it.tunnel_timer = None;
        let addresses = it.addresses.clone();
        self.wire(node, &addresses, mtu);
    }

    /// The node's `meshd-wg` is killed and started again: keys, peers and sessions are gone, and the agent's driver
    /// notices.
    pub fn restart_device(&mut self, node: usize) {
        self.note(node, "its device is restarted");
        let numbers = [node as u64, self.nodes[node].epoch, self.now];
        let tunnel = crate::make::tunnel(&self.config, &numbers, self.stamp());
        self.nodes[node].kernel.restart_device(tunnel);
        self.look_soon(node);
    }

    /// The node's interface on the underlay takes packets of so many bytes from now on, in both directions.
    pub fn set_underlay_mtu(&mut self, node: usize, mtu: u16) {
        self.note(node, &format!("MTU {mtu}"));
        let addresses = self.nodes[node].addresses.clone();
        self.wire(node, &addresses, mtu);
    }

    /// The node is given other addresses on the underlay; its kubelet says so at once.
    ///
    /// # Errors
    /// What the API server answered.
    pub fn change_addresses(&mut self, node: usize) -> Result<(), String> {
        let it = &mut self.nodes[node];
        it.moves += 1;
        let new = self.config.underlay_addresses(node, it.moves);
        let old = std::mem::replace(&mut it.addresses, new.clone());
        let mtu = it.kernel.underlay_mtu;
        self.note(node, &format!("moves from {old:?} to {new:?}"));
        self.underlay.unplug(&old);
        self.underlay.plug(node, &new);
        self.wire(node, &new, mtu);
        let internal = new.iter().map(|a| json!({ "type": "InternalIP", "address": a }));
        let status = json!({ "status": { "addresses": internal.collect::<Vec<_>>() } });
        let path = format!("/api/v1/nodes/{}/status", self.nodes[node].name);
        self.admin(Request::merge_patch(path, &status)).map(|_| ())
    }

    fn wire(&mut self, node: usize, addresses: &[IpAddr], mtu: u16) {
        crate::make::wire(&self.config, &mut self.nodes[node].kernel, node, addresses, mtu);
        self.look_soon(node);
    }

    /// The driver waits until changes have settled.
    fn look_soon(&mut self, node: usize) {
        self.queue.push(self.now + SETTLE, What::Look { node });
    }

    /// The node sits behind a NAT from now on, which shows it to the others at a public address, forgets what is idle for
    /// so long, and lets nothing in that it does not know. Its agent, once it is started, keeps its peers alive this
    /// often.
    pub fn set_nat(&mut self, node: usize, idle: Duration, keepalive: Option<u16>) {
        self.note(node, &format!("behind NAT, {idle:?}, keepalive {keepalive:?}"));
        let public = self.config.underlay_addresses(node, NAT_MOVE);
        self.underlay.unplug(&self.nodes[node].addresses);
        self.underlay.plug(node, &public);
        self.nats.insert(node, Nat::new(public, Sim::nanos(idle)));
        self.nodes[node].keepalive = keepalive;
    }

    /// The NAT of the node is restarted: it has forgotten everything, and gives out other ports.
    pub fn restart_nat(&mut self, node: usize) {
        self.note(node, "its NAT is restarted");
        if let Some(nat) = self.nats.get_mut(&node) {
            nat.restart();
        }
    }

    /// Tells the agent what its kernel holds, unasked, as a driver does when something changed.
    pub fn observe(&mut self, node: usize) {
        let state = self.nodes[node].kernel.observe();
        self.agent_event(node, Event::Kernel(KernelEvent::Observed(Box::new(state))));
    }

    /// Changes how all links behave, from now on.
    pub fn set_links(&mut self, link: Link) {
        self.trace
            .bytes(self.now, usize::MAX, Kind::Driver, format!("{link:?}").as_bytes());
        self.underlay.link = link;
    }

    /// Changes how the link from one node to another behaves, from now on.
    pub fn set_link(&mut self, from: usize, to: usize, link: Link) {
        self.trace
            .bytes(self.now, from, Kind::Driver, format!("{to} {link:?}").as_bytes());
        self.underlay.set_link(from, to, link);
    }

    /// Cuts these nodes off from all others.
    pub fn partition(&mut self, nodes: &[usize]) {
        self.trace.bytes(
            self.now,
            usize::MAX,
            Kind::Driver,
            format!("partition {nodes:?}").as_bytes(),
        );
        self.underlay.partition(nodes);
    }

    /// Every link as at the start, no partition, no fault of a kernel to come.
    pub fn heal(&mut self) {
        self.trace.bytes(self.now, usize::MAX, Kind::Driver, b"heal");
        self.underlay.heal(self.config.link);
        for node in &mut self.nodes {
            node.kernel.faults.clear();
        }
    }

    fn note(&mut self, node: usize, what: &str) {
        self.trace.bytes(self.now, node, Kind::Driver, what.as_bytes());
    }
}
