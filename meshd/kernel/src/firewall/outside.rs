//! The way between this node's pods and the world outside of the cluster: refused, or with the node's address.
//!
//! The rules here open nothing. What they do not translate keeps the pod's address, and the egress chain behind them
//! drops it: so a packet that conntrack holds for invalid, which skips all translation, does not leak.

use super::spec::{self, FORWARD, MASQUERADE};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{Firewall, POD_IFNAME_PREFIX};
use nlink::netlink::nftables::{
    CtDirection, CtState, CtStatus, Field, NatStatement, RuleSpec, Stmt, TcpFlags, Value, Verdict,
};

/// Of [`FORWARD`]: behind what other tools filter there. Of chains with one priority, that which was registered last is
/// asked first: at kube-proxy's (0), our drop would come before its reject for a Service without endpoints.
pub(super) const FORWARD_PRIORITY: i32 = 10;
/// Of [`MASQUERADE`]: where source addresses are translated.
pub(super) const MASQUERADE_PRIORITY: i32 = 100;

/// The rules of both chains, each in the order in which they are asked.
pub(super) fn rules(firewall: &Firewall) -> Vec<(&'static str, RuleSpec)> {
    let mut rules = clamps(&firewall.device);
    // What stays in the cluster is not outside, wherever its address lies: that of a peer's own may well be refused.
    rules.extend(inside(FORWARD, &firewall.device));
    for refused in &firewall.outside.refused {
        // A pod of another node comes by the tunnel, through a port of this one's that leads outside.
        for from in [pods(), firewall.device.as_str().into()] {
            // What answers somebody there is not meant: a pod does not choose who asks it through a port of the node's.
            let rule = spec::when(Field::Iifname, from)
                .then(spec::matches(Field::CtDirection, CtDirection::Original.into()))
                .then(spec::within(destination(refused), *refused));
            rules.push((FORWARD, rule.then(Stmt::Counter).then(Verdict::Drop)));
        }
    }
    rules.extend(no_transit(&firewall.device));
    if firewall.outside.masquerade {
        rules.extend(masquerade(firewall));
    }
    rules
}

/// Nobody uses this node as a way to somewhere else: what comes by the tunnel and leaves by an interface that is not ours
/// is an answer, or was translated here (a NodePort whose endpoint is not a pod). A peer may send from its own addresses,
/// which the egress chain does not know.
fn no_transit(device: &str) -> [(&'static str, RuleSpec); 3] {
    let comes = || spec::when(Field::Iifname, device.into());
    let answers = CtState::ESTABLISHED | CtState::RELATED;
    let translated = CtStatus::DST_NAT;
    [
        comes()
            .then(spec::matches(Field::CtState, answers.into()))
            .then(Verdict::Accept),
        comes()
            .then(spec::matches(Field::CtStatus, translated.into()))
            .then(Verdict::Accept),
        comes().then(Stmt::Counter).then(Verdict::Drop),
    ]
    .map(|rule| (FORWARD, rule))
}

/// A connection through the tunnel or with a pod uses no segments that its route does not carry, in neither direction.
/// The kernel lowers what a SYN announces, and never raises it.
fn clamps(device: &str) -> Vec<(&'static str, RuleSpec)> {
    let ends = [
        (Field::Iifname, pods()),
        (Field::Oifname, pods()),
        (Field::Iifname, device.into()),
        (Field::Oifname, device.into()),
    ];
    let clamp = |(field, name)| {
        let syn =
            spec::when(field, name).then(spec::matches(Field::TcpFlags, Value::TcpFlags(TcpFlags::SYN)));
        (FORWARD, syn.then(Stmt::ClampTcpMssToPmtu))
    };
    ends.into_iter().map(clamp).collect()
}

/// What leaves by an interface that is not ours, from one of our pods, to no pod's address.
fn masquerade(firewall: &Firewall) -> Vec<(&'static str, RuleSpec)> {
    let mut rules: Vec<_> = inside(MASQUERADE, &firewall.device).into();
    for cidr in &firewall.pod_cidrs {
        let rule = RuleSpec::new().then(spec::within(destination(cidr), *cidr));
        rules.push((MASQUERADE, rule.then(Verdict::Accept)));
    }
    for cidr in &firewall.pod_cidrs {
        let source = match cidr {
            IpNetwork::V4(_) => Field::Ip4Saddr,
            IpNetwork::V6(_) => Field::Ip6Saddr,
        };
        let rule = from_pods().then(spec::within(source, *cidr)).then(Stmt::Counter);
        // A port by chance: two pods that begin at once from the same port do not race for it.
        let translate = NatStatement::masquerade().fully_random();
        rules.push((MASQUERADE, rule.then(Stmt::Nat(translate))));
    }
    rules
}

/// What leaves by interfaces of ours is none of the chain's business.
fn inside(chain: &'static str, device: &str) -> [(&'static str, RuleSpec); 2] {
    [pods(), device.into()].map(|name| (chain, spec::when(Field::Oifname, name).then(Verdict::Accept)))
}

fn from_pods() -> RuleSpec {
    spec::when(Field::Iifname, pods())
}

fn pods() -> Value {
    Value::NamePrefix(POD_IFNAME_PREFIX.to_owned())
}

fn destination(prefix: &IpNetwork) -> Field {
    match prefix {
        IpNetwork::V4(_) => Field::Ip4Daddr,
        IpNetwork::V6(_) => Field::Ip6Daddr,
    }
}
