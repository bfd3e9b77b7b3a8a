//! The agent's operations, carried out as Linux and the drivers carry them out: idempotent, and refused where Linux
//! refuses.

use crate::kernel::Kernel;
use crate::kernel::fib::{Hop, Out};
use ipnetwork::IpNetwork;
use meshd_core::{Failure, KernelOp};
use meshd_model::kernel::{Device, KernelState, Peer, PodLink, Route, RouteTarget, TABLE_MAIN};
use meshd_model::{Now, PublicKey};
use meshd_wireguard_proto::PeerConfig;

/// No such file or directory.
pub(crate) const ENOENT: i32 = 2;
/// Input/output error.
pub const EIO: i32 = 5;
/// File exists.
pub(crate) const EEXIST: i32 = 17;
/// No such device.
pub(crate) const ENODEV: i32 = 19;
/// Invalid argument.
pub(crate) const EINVAL: i32 = 22;
/// No such key.
pub(crate) const ENOKEY: i32 = 126;

/// Which operations a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// `SetFirewall`
    SetFirewall,
    /// `SetDevice`
    SetDevice,
    /// `SetPeer`
    SetPeer,
    /// `RemovePeer`
    RemovePeer,
    /// `Greet`
    Greet,
    /// `SetRoute`
    SetRoute,
    /// `RemoveRoute`
    RemoveRoute,
    /// `SetRule`
    SetRule,
    /// `AttachPod`
    AttachPod,
    /// `DetachPod`
    DetachPod,
    /// `RemovePodLink`
    RemovePodLink,
    /// All others.
    Other,
}

impl OpKind {
    fn of(op: &KernelOp) -> OpKind {
        match op {
            KernelOp::SetFirewall(_) => OpKind::SetFirewall,
            KernelOp::SetDevice(_) => OpKind::SetDevice,
            KernelOp::SetPeer(_) => OpKind::SetPeer,
            KernelOp::RemovePeer(_) => OpKind::RemovePeer,
            KernelOp::Greet { .. } => OpKind::Greet,
            KernelOp::SetRoute(_) => OpKind::SetRoute,
            KernelOp::RemoveRoute(_) => OpKind::RemoveRoute,
            KernelOp::SetRule(_) => OpKind::SetRule,
            KernelOp::AttachPod(_) => OpKind::AttachPod,
            KernelOp::DetachPod(_) => OpKind::DetachPod,
            KernelOp::RemovePodLink(_) => OpKind::RemovePodLink,
            KernelOp::Observe | KernelOp::PassForward { .. } | KernelOp::RemoveRule(_) => OpKind::Other,
        }
    }
}

/// What happens to an operation instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// It fails with this error number, and nothing is done.
    Fail(i32),
    /// It is said to be done and is not: a kernel that lies, to show that the checks do not take its word.
    Lie,
}

/// A fault that operations to come will meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which operations.
    pub op: OpKind,
    /// What happens to them.
    pub kind: FaultKind,
    /// How many of them.
    pub times: u32,
}

fn failure(errno: i32, message: String) -> Failure {
    Failure {
        errno: Some(errno),
        message,
    }
}

impl Kernel {
    /// Carries an operation out; `Observe` answers with what is there.
    pub(crate) fn apply(&mut self, now: Now, op: &KernelOp) -> Result<Option<Box<KernelState>>, Failure> {
        match self.fault(op) {
            Some(FaultKind::Fail(errno)) => {
                return Err(failure(
                    errno,
                    format!("{:?}: error {errno}, as was asked for", OpKind::of(op)),
                ));
            }
            Some(FaultKind::Lie) => return Ok(None),
            None => {}
        }
        match op {
            KernelOp::Observe => return Ok(Some(Box::new(self.observe()))),
            KernelOp::SetFirewall(firewall) => self.firewall = Some(firewall.clone()),
            // No other tool has chains here.
            KernelOp::PassForward { .. } => {}
            KernelOp::SetDevice(device) => self.set_device(now, device)?,
            KernelOp::SetPeer(peer) => self.set_peer(now, peer)?,
            KernelOp::RemovePeer(key) => {
                self.tunnel.remove_peer(key);
                self.release(key);
            }
            KernelOp::Greet { peer, keepalive } => self.greet(now, *peer, *keepalive),
            KernelOp::SetRoute(route) => self.set_route(route)?,
            KernelOp::RemoveRoute(route) => self.remove_route(route),
            KernelOp::SetRule(rule) => {
                self.rules.insert(rule.clone());
            }
            KernelOp::RemoveRule(rule) => {
                self.rules.remove(rule);
            }
            KernelOp::AttachPod(link) => self.attach(link)?,
            KernelOp::DetachPod(link) => self.detach(link),
            KernelOp::RemovePodLink(link) => {
                self.detach(link);
                self.unlink(&link.host_ifname);
            }
        }
        Ok(None)
    }

    fn fault(&mut self, op: &KernelOp) -> Option<FaultKind> {
        let kind = OpKind::of(op);
        let fault = self.faults.iter_mut().find(|f| f.op == kind && f.times > 0)?;
        fault.times -= 1;
        Some(fault.kind)
    }

    fn set_device(&mut self, now: Now, device: &Device) -> Result<(), Failure> {
        let missing = || failure(ENOKEY, format!("there is no private key {:?}", device.key));
        let key = self.keys.get(&device.key).ok_or_else(missing)?;
        // Setting the key that it has would end its sessions.
        if self.tunnel.public_key() != Some(key.public_key()) {
            self.tunnel.set_private_key(now, Some(key.clone()));
        }
        self.tunnel.set_mtu(device.mtu);
        self.device_name.clone_from(&device.name);
        self.device.listen_port = device.listen_port;
        self.device.fwmark = device.fwmark;
        self.device.mtu = device.mtu;
        self.device.addresses.clone_from(&device.addresses);
        self.device.up = true;
        self.device.forwards = true;
        Ok(())
    }

    fn set_peer(&mut self, now: Now, peer: &Peer) -> Result<(), Failure> {
        if !self.device.up {
            return Err(failure(
                ENODEV,
                format!("peer {}: {} is not there", peer.public_key, self.device_name),
            ));
        }
        let config = PeerConfig {
            endpoint: peer.endpoint,
            replace_allowed_ips: true,
            allowed_ips: peer.allowed_ips.iter().copied().collect(),
            keepalive: Some(peer.keepalive.unwrap_or(0)),
            ..PeerConfig::default()
        };
        self.tunnel.set_peer(now, peer.public_key, config);
        self.release(&peer.public_key);
        // A prefix has one peer: one that another had moves.
        for net in &peer.allowed_ips {
            if let Some(other) = self.allowed.insert(*net, peer.public_key)
                && let Some(nets) = self.peers.get_mut(&other)
            {
                nets.remove(net);
            }
        }
        self.peers.insert(peer.public_key, peer.allowed_ips.clone());
        Ok(())
    }

    /// As the drivers do it: the keepalive is changed and put back.
    fn greet(&mut self, now: Now, peer: PublicKey, keepalive: Option<u16>) {
        if self.tunnel.peer(&peer).is_none() {
            return;
        }
        let steps = match keepalive {
            None => [1, 0],
            Some(seconds) => [0, seconds],
        };
        for seconds in steps {
            let config = PeerConfig {
                keepalive: Some(seconds),
                ..PeerConfig::default()
            };
            self.tunnel.set_peer(now, peer, config);
        }
    }

    fn release(&mut self, peer: &PublicKey) {
        for net in self.peers.remove(peer).unwrap_or_default() {
            self.allowed.remove(&net);
        }
    }

    fn set_route(&mut self, route: &Route) -> Result<(), Failure> {
        let hop = self.hop(route)?;
        self.routes
            .insert((route.table, route.dst, route.metric), route.clone());
        self.fib.set(route.table, route.dst, route.metric, hop);
        Ok(())
    }

    fn hop(&self, route: &Route) -> Result<Hop, Failure> {
        let RouteTarget::Device { name, src, mtu } = &route.target else {
            return Ok(Hop {
                out: Out::Unreachable,
                src: None,
                mtu: u16::MAX,
            });
        };
        if *name != self.device_name || !self.device.up {
            return Err(failure(
                ENODEV,
                format!("route to {}: there is no interface {name}", route.dst),
            ));
        }
        if !self.is_own(*src) {
            return Err(failure(
                EINVAL,
                format!("route to {}: no interface has {src}", route.dst),
            ));
        }
        Ok(Hop {
            out: Out::Device,
            src: Some(*src),
            mtu: *mtu,
        })
    }

    fn remove_route(&mut self, route: &Route) {
        if self
            .routes
            .remove(&(route.table, route.dst, route.metric))
            .is_some()
        {
            self.fib.remove(route.table, route.dst, route.metric);
        }
    }

    fn attach(&mut self, link: &PodLink) -> Result<(), Failure> {
        let gone = || failure(ENOENT, format!("the network namespace {} is gone", link.netns));
        let namespace = self.namespaces.get(&link.netns).ok_or_else(gone)?;
        if namespace.foreign.contains(&link.id.ifname) {
            let message = format!("{} has an interface {} already", link.netns, link.id.ifname);
            return Err(failure(EEXIST, message));
        }
        self.unlink(&link.host_ifname);
        self.guards
            .insert(link.host_ifname.clone(), link.addresses.iter().copied().collect());
        for address in &link.addresses {
            let src = link
                .host_addresses
                .iter()
                .copied()
                .find(|a| a.is_ipv4() == address.is_ipv4());
            let hop = Hop {
                out: Out::Pod(link.host_ifname.clone()),
                src,
                mtu: link.mtu,
            };
            self.fib.set(TABLE_MAIN, IpNetwork::from(*address), 0, hop);
        }
        if let Some(namespace) = self.namespaces.get_mut(&link.netns) {
            namespace.host_ifname = Some(link.host_ifname.clone());
        }
        self.links.insert(link.host_ifname.clone(), link.clone());
        Ok(())
    }

    /// What is left is an interface to which no route leads, and from which nothing passes.
    fn detach(&mut self, link: &PodLink) {
        self.guards.remove(&link.host_ifname);
        let Some(there) = self.links.get_mut(&link.host_ifname) else {
            return;
        };
        for address in std::mem::take(&mut there.addresses) {
            self.fib.remove(TABLE_MAIN, IpNetwork::from(address), 0);
        }
    }
}
