//! Desired against observed, per key. An event marks keys, an observation marks all of them; [`NodeAgent::settle`]
//! looks at what is marked, and nothing else, through the one function [`NodeAgent::reconcile`].
//!
//! What comes first:
//!
//! ```text
//! Firewall, unreachable routes         at once; nothing else happens on the node until those of pods are in force
//! Forward                              as soon as they are
//! Device -> Peer -> Route, Rule        when adding; all wait for the gate below
//! Route -> Peer                        when removing
//! ```
//!
//! The gate: the store is loaded, the own Node has pod CIDRs, and the Nodes were listed once. Until then an agent
//! that was restarted leaves everything as it found it: pods that run keep their traffic.

use crate::action::{KernelOp, Resource};
use crate::agent::NodeAgent;
use crate::observed::RouteKey;
use crate::ops::Task;
use crate::{METADATA, TimerKind};
use meshd_model::kernel::{Device, DeviceState, Firewall, Outside};
use meshd_model::net::{canonical, host};
use meshd_model::{AttachmentId, Now};
use std::net::IpAddr;

/// What is to be done about one resource.
#[derive(Debug)]
pub(crate) enum Plan {
    /// What is desired is there.
    Settled,
    /// It is neither desired nor there.
    Gone,
    /// This makes it so.
    Do(Task),
    /// That one has to settle first.
    Wait(Resource),
    /// Something is missing whose coming marks this again.
    Hold,
}

impl Plan {
    pub(crate) fn kernel(op: KernelOp) -> Self {
        Plan::Do(Task::Kernel(op))
    }
}

impl NodeAgent {
    pub(crate) fn mark(&mut self, resource: Resource) {
        self.dirty.insert(resource);
    }

    /// Marks everything that is desired, that is there, or that has failed.
    pub(crate) fn mark_all(&mut self) {
        let mut all = vec![
            Resource::Firewall,
            Resource::Forward,
            Resource::Device,
            Resource::Annotations,
        ];
        all.extend(
            self.nodes
                .keys()
                .chain(self.observed.peers.keys())
                .map(|k| Resource::Peer(*k)),
        );
        all.extend(self.unreachable_routes().map(RouteKey::resource));
        all.extend(
            self.nodes
                .claims()
                .prefixes()
                .chain(self.nodes.kept())
                .flat_map(|p| self.route_keys(p))
                .map(RouteKey::resource),
        );
        all.extend(self.observed.routes.keys().map(|k| k.resource()));
        all.extend(
            self.local
                .cidrs
                .iter()
                .chain(self.observed.rules.keys())
                .map(|p| Resource::Rule(*p)),
        );
        all.extend(self.attachments.ids().cloned().map(Resource::Attachment));
        all.extend(self.orphans().map(Resource::Attachment));
        all.extend(self.ops.troubles().map(|(resource, _)| resource.clone()));
        self.dirty.extend(all);
    }

    /// Reconciles what is marked until nothing is. It ends: a resource marks others only when it has settled, and
    /// each of those waits for it once.
    pub(crate) fn settle(&mut self, now: Now) {
        let gates = (self.is_fail_closed(), self.gate());
        if gates != self.gates {
            self.gates = gates;
            self.mark_all();
        }
        if self.is_network_denied() {
            self.mark(Resource::NetworkCondition);
        }
        while let Some(resource) = self.dirty.pop_first() {
            self.reconcile(now, resource);
        }
    }

    fn reconcile(&mut self, now: Now, resource: Resource) {
        self.reconciled += 1;
        if self.ops.is_outstanding(&resource) {
            // Its outcome marks it again.
            return;
        }
        match self.plan(now, &resource) {
            Plan::Settled => {
                self.ops.succeeded(&resource);
                self.timers.clear(&TimerKind::Retry(resource.clone()));
            }
            Plan::Gone => {
                self.timers.clear(&TimerKind::Retry(resource.clone()));
                self.ops.forget(&resource);
            }
            Plan::Do(task) => return self.begin(now, resource, task),
            Plan::Wait(on) => return self.ops.wait(resource, on),
            Plan::Hold => return,
        }
        let waiting = self.ops.take_waiting(&resource);
        self.dirty.extend(waiting);
    }

    fn begin(&mut self, now: Now, resource: Resource, task: Task) {
        if self.ops.must_wait(now.boot, &resource, &task) {
            return;
        }
        self.note_begun(&task);
        self.timers.clear(&TimerKind::Retry(resource.clone()));
        let action = self.ops.begin(now, resource, task);
        self.actions.push_back(action);
    }

    fn plan(&mut self, now: Now, resource: &Resource) -> Plan {
        match resource {
            Resource::Firewall => self.plan_firewall(),
            Resource::Forward => self.plan_forward(),
            Resource::Device => self.plan_device(),
            Resource::Peer(key) => self.plan_peer(now, key),
            Resource::Route { table, dst, metric } => self.plan_route(RouteKey {
                table: *table,
                dst: *dst,
                metric: *metric,
            }),
            Resource::Rule(from) => self.plan_rule(*from),
            Resource::Attachment(id) => self.plan_attachment(now, id),
            Resource::Annotations => self.plan_annotations(now),
            Resource::NetworkCondition => self.plan_network(now),
            Resource::Claim(family) => self.plan_claim(now, *family),
            Resource::PodEvent(pod, reason) => self.plan_pod_event(pod, *reason),
            Resource::Block(cidr) => self.plan_block(now, *cidr),
            Resource::Kept(key) => self.plan_kept(key),
            Resource::Kernel if self.observe_wanted => Plan::kernel(KernelOp::Observe),
            Resource::Store if !self.attachments.is_loaded() => Plan::Do(Task::Load),
            Resource::Kernel | Resource::Store => Plan::Settled,
        }
    }

    fn plan_firewall(&self) -> Plan {
        let desired = self.desired_firewall();
        if !self.observed.seen {
            Plan::Hold
        } else if self.observed.firewall.as_ref() == Some(&desired) {
            Plan::Settled
        } else {
            Plan::kernel(KernelOp::SetFirewall(desired))
        }
    }

    fn plan_forward(&self) -> Plan {
        let mut chains = self.observed.forward_chains.iter();
        if !self.is_fail_closed() {
            Plan::Hold
        } else if chains.any(|c| c.is_iptables() && !c.passes) {
            let device = self.config.device.clone();
            Plan::kernel(KernelOp::PassForward { device })
        } else {
            Plan::Settled
        }
    }

    fn plan_device(&self) -> Plan {
        let Some(desired) = self.local.device(&self.config).filter(|_| self.gate()) else {
            return Plan::Hold;
        };
        if self
            .observed
            .device
            .as_ref()
            .is_some_and(|d| d.as_chosen && is_as_desired(d, &desired))
        {
            Plan::Settled
        } else {
            Plan::kernel(KernelOp::SetDevice(desired))
        }
    }

    pub(crate) fn desired_firewall(&self) -> Firewall {
        Firewall {
            pod_cidrs: self.bounds.pods.iter().copied().collect(),
            device: self.config.device.clone(),
            mark: self.config.mark,
            outside: self.desired_outside(),
        }
    }

    /// Service addresses are refused as well: they mean something within the cluster only, so that one that nobody has
    /// translated, because kube-proxy is away or just starts, would tell a stranger what was meant for a Service.
    fn desired_outside(&self) -> Outside {
        let wanted = &self.config.outside;
        let metadata = METADATA.map(host).into_iter().filter(|_| !wanted.metadata);
        let except = wanted.except.iter().copied().map(canonical);
        Outside {
            masquerade: wanted.masquerade,
            refused: self
                .bounds
                .services
                .iter()
                .copied()
                .chain(except)
                .chain(metadata)
                .collect(),
        }
    }

    /// Whether nothing with a pod's address can leave or enter in the clear.
    pub(crate) fn is_fail_closed(&self) -> bool {
        self.observed.seen
            && self.observed.firewall.as_ref() == Some(&self.desired_firewall())
            && self.unreachable_routes().all(|k| self.is_unreachable(k))
    }

    /// Whether enough is known to change anything but the fail-closed rules.
    pub(crate) fn gate(&self) -> bool {
        self.is_fail_closed()
            && self.attachments.is_loaded()
            && self.nodes.is_synced()
            && !self.local.cidrs.is_empty()
    }

    /// Whether the device can hold peers: it is up with our key.
    pub(crate) fn has_device(&self) -> bool {
        let key = self.config.identity.public_key;
        self.observed
            .device
            .as_ref()
            .is_some_and(|d| d.up && d.public_key == Some(key))
    }

    /// Whether the device carries these addresses, and will go on doing so: they can be the source of routes.
    pub(crate) fn device_carries(&self, addresses: impl IntoIterator<Item = IpAddr>) -> bool {
        let there = self.observed.device.as_ref().filter(|_| self.has_device());
        !self.ops.is_outstanding(&Resource::Device)
            && there.is_some_and(|d| addresses.into_iter().all(|a| d.addresses.contains(&a)))
    }

    /// Whether the device is wholly as desired; it may still be of the kind that was chosen before, which serves as well.
    pub(crate) fn is_device_settled(&self) -> bool {
        let desired = self.local.device(&self.config);
        matches!((&self.observed.device, desired), (Some(d), Some(desired)) if is_as_desired(d, &desired))
    }

    /// Interfaces of pods that no attachment explains.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = AttachmentId> {
        self.observed
            .links
            .keys()
            .filter(|name| self.attachments.by_ifname(name).is_none())
            .map(|name| orphan_id(name))
    }
}

/// What an interface goes by that no attachment explains: no runtime can give an id whose container is empty.
pub(crate) fn orphan_id(host_ifname: &str) -> AttachmentId {
    AttachmentId {
        container_id: String::new(),
        ifname: host_ifname.to_owned(),
    }
}

fn is_as_desired(observed: &DeviceState, desired: &Device) -> bool {
    observed.up
        && observed.forwards
        && observed.public_key == Some(desired.public_key)
        && observed.listen_port == desired.listen_port
        && observed.fwmark == desired.fwmark
        && observed.mtu == desired.mtu
        && observed.addresses == desired.addresses
}
