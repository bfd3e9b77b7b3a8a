//! What whoever drives the simulation does to nodes and links, besides letting time pass.

use crate::kernel::ops::Fault;
use crate::sim::{Sim, What};
use crate::trace::Kind;
use crate::underlay::Link;
use meshd_apiserver::Request;
use meshd_core::{Event, KernelEvent};
use std::time::Duration;

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
