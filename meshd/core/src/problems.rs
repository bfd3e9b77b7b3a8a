//! What is wrong, and what to do about it. Nothing of it is stored: it is read off the state, so that a problem is
//! gone as soon as its cause is.

use crate::action::Resource;
use crate::agent::NodeAgent;
use crate::attach::table::{Attachment, State};
use crate::errno::{ENOSPC, EROFS};
use crate::node::Node;
use crate::ops::Trouble;
use meshd_model::kernel::{ForwardChain, POD_IFNAME_PREFIX};
use meshd_model::net::{Family, contains, host};
use meshd_model::status::Problem;
use meshd_model::{AnnotationProblem, AttachmentId, NodeName, Now};
use std::net::IpAddr;
use std::time::Duration;

/// A driver that has not answered for so long is named.
const SILENT_AFTER: Duration = Duration::from_secs(60);

pub(crate) fn problem(
    subject: impl ToString,
    message: impl Into<String>,
    remedy: impl Into<String>,
) -> Problem {
    Problem {
        subject: subject.to_string(),
        message: message.into(),
        remedy: remedy.into(),
    }
}

impl NodeAgent {
    /// Most urgent first: this node, its drivers, its pods, then the other nodes.
    pub(crate) fn problems(&self, now: Now) -> Vec<Problem> {
        let mut groups = [
            self.readiness_problem(self.own_problems(now)),
            self.driver_problems(now),
            self.attachments
                .iter()
                .flat_map(|(id, a)| self.attachment_problems(id, a))
                .collect(),
            self.nodes
                .iter()
                .flat_map(|(name, node)| self.node_problems(name, node))
                .collect(),
        ];
        groups
            .iter_mut()
            .for_each(|group: &mut Vec<Problem>| group.sort());
        groups.concat()
    }

    /// A node that is not ready says why, where nothing else does.
    fn readiness_problem(&self, mut found: Vec<Problem>) -> Vec<Problem> {
        if let Some(why) = self.why_not_ready()
            && found.is_empty()
        {
            let subject = format!("node/{}", self.config.node);
            let remedy = "this passes by itself soon after the start; if not, see meshd's log";
            found.push(problem(
                subject,
                format!("no pod can be added yet: {why}"),
                remedy,
            ));
        }
        found
    }

    fn own_problems(&self, now: Now) -> Vec<Problem> {
        let mut found = Vec::new();
        if let Some(message) = &self.api_away {
            let what = "pods that run keep their traffic; see that the API server and the way to it are up";
            found.push(problem(
                "api-server",
                format!("the API server cannot be reached: {message}"),
                what,
            ));
        }
        self.own_node_problems(now, &mut found);
        let subject = format!("node/{}", self.config.node);
        for cidr in &self.local.cidrs {
            if let Some(senior) = self.nodes.senior_to_own(*cidr) {
                found.push(problem(
                    &subject,
                    format!("the older node {senior} claims the own pod CIDR {cidr}: it gets its traffic"),
                    format!("find out which of the two is right; take the false claim from Node {senior}'s annotations"),
                ));
            }
        }
        if self.observed.seen && self.local.endpoints.is_empty() && self.own.node.is_some() {
            found.push(problem(
                &subject,
                "this node has no address at which peers can reach it: nothing is published",
                "see status.addresses of the Node, and the endpoints that meshd is configured with",
            ));
        }
        if let Some(mtu) = self.local.narrow_underlay {
            found.push(problem(
                &subject,
                format!("the underlay's MTU of {mtu} leaves pods less than their family needs"),
                "raise the MTU of the interface that carries the endpoint address",
            ));
        }
        let blocking = |c: &&ForwardChain| !c.passes && !c.is_iptables();
        found.extend(self.observed.forward_chains.iter().filter(blocking).map(|chain| {
            let device = &self.config.device;
            problem(
                "forwarding",
                format!("nftables chain {chain} of another tool drops what it does not accept: pods' packets may be among that"),
                format!("have that tool accept what comes from and goes to the interfaces {POD_IFNAME_PREFIX}* and {device}"),
            )
        }));
        let mends = self.publisher.mends(now.boot);
        if mends > 1 {
            found.push(problem(
                &subject,
                format!("another hand has changed this node's annotations {} times", mends),
                "see managedFields of the Node for who writes meshd.dev annotations",
            ));
        }
        let times = self.network.times(now.boot);
        if times > 1 {
            found.push(problem(
                &subject,
                format!(
                    "another hand sets the condition NetworkUnavailable again: it was cleared {times} times"
                ),
                "see managedFields of the Node for who writes it: no pod is scheduled here while it is True",
            ));
        }
        found.extend(self.attachments.damaged().iter().map(|what| {
            problem(
                "store",
                format!("a lease could not be read: {what}"),
                "its pod keeps running; DEL of it cleans up: remove the damaged file then, and restart meshd",
            )
        }));
        self.orphan_problems(&mut found);
        self.kept_problems(&mut found);
        found
    }

    fn own_node_problems(&self, now: Now, found: &mut Vec<Problem>) {
        let subject = format!("node/{}", self.config.node);
        let Some(node) = &self.own.node else {
            if self.nodes.is_synced() {
                found.push(problem(
                    &subject,
                    "this node's Node has not been seen",
                    "see that the kubelet has registered it under this name",
                ));
            }
            return;
        };
        if self.own.deleted {
            found.push(problem(
                &subject,
                "this node's Node is gone from the API server",
                "pods that run keep their traffic; register the node again or stop meshd",
            ));
        }
        if node.pod_cidrs.is_empty() && self.config.ipam.pool.is_none() {
            found.push(problem(
                &subject,
                "this node's Node has no podCIDRs: no pod can be added",
                "see that kube-controller-manager runs with --allocate-node-cidrs, or set spec.podCIDRs",
            ));
        }
        for all in self.blocks_short(now) {
            found.push(problem(
                &subject,
                format!("no further block of addresses can be claimed: {all}"),
                "add a prefix to cluster_pod_cidrs, or take nodes away that are not needed",
            ));
        }
        for refused in &self.own.refused {
            found.push(problem(
                &subject,
                format!(
                    "pod CIDR {} of this node is not used: {}",
                    refused.what, refused.why
                ),
                "make spec.podCIDRs of the Node and cluster_pod_cidrs of meshd agree",
            ));
        }
    }

    fn driver_problems(&self, now: Now) -> Vec<Problem> {
        let failing = self
            .ops
            .troubles()
            .map(|(resource, trouble)| failing(resource, trouble));
        let silent = self
            .ops
            .outstanding()
            .filter(|(_, o)| now.boot.since(o.since) > SILENT_AFTER)
            .map(|(resource, o)| {
                let waited = now.boot.since(o.since).as_secs();
                problem(
                    subject(resource),
                    format!("no answer for {waited} s to what was asked of it"),
                    "see meshd's log; restarting meshd loses no packet",
                )
            });
        failing.chain(silent).collect()
    }

    fn attachment_problems(&self, id: &AttachmentId, attachment: &Attachment) -> Vec<Problem> {
        let lease = &attachment.lease;
        let subject = format!("attachment/{id}");
        let mut found = Vec::new();
        if attachment.netns_gone {
            found.push(problem(
                &subject,
                format!(
                    "its network namespace {} is gone, its addresses are still held",
                    lease.netns
                ),
                "the runtime's DEL frees them; if none comes, remove the sandbox with crictl",
            ));
        }
        if matches!(attachment.state, State::HalfDone) {
            found.push(problem(
                &subject,
                "its ADD was cut off; its addresses are held",
                "the runtime's next ADD or DEL of it finishes it",
            ));
        }
        let is_own = |a: &IpAddr| self.local.cidrs.iter().any(|c| contains(*c, host(*a)));
        for address in lease
            .addresses
            .iter()
            .filter(|a| !is_own(a) && !self.local.cidrs.is_empty())
        {
            found.push(problem(
                &subject,
                format!("its address {address} is in no pod CIDR of this node any more: other nodes do not reach it"),
                "delete this pod: it gets another address when it is made again",
            ));
        }
        for address in lease
            .addresses
            .iter()
            .filter(|a| !self.attachments.holds(id, **a))
        {
            found.push(problem(
                &subject,
                format!("its address {address} belongs to another attachment as well"),
                "delete this pod: it gets another address when it is made again",
            ));
        }
        found
    }

    fn node_problems(&self, name: &NodeName, node: &Node) -> Vec<Problem> {
        let subject = format!("node/{name}");
        let annotations = match &node.annotations {
            Ok(annotations) => annotations,
            Err(AnnotationProblem::Absent) => {
                let message = format!("{subject} has no key: unreachable, not unencrypted");
                return vec![problem(
                    &subject,
                    message,
                    "see that meshd runs there and may write its annotations",
                )];
            }
            Err(bad) => {
                let message = format!("{bad}: the node is unreachable, not unencrypted");
                return vec![problem(
                    &subject,
                    message,
                    "meshd on that node mends it when it runs",
                )];
            }
        };
        let mut found = Vec::new();
        if annotations.public_key == self.config.identity.public_key {
            found.push(problem(
                &subject,
                "it publishes this node's own key: it is not made a peer",
                "if its disk was cloned, remove the key there and restart meshd; otherwise find out who wrote it",
            ));
        } else if let Some((winner, _)) = self
            .nodes
            .by_key(&annotations.public_key)
            .filter(|(w, _)| *w != name)
        {
            found.push(problem(
                &subject,
                format!("it publishes the key of the older node {winner}: it is not made a peer"),
                "if its disk was cloned, remove the key there and restart meshd; otherwise find out who wrote it",
            ));
        }
        if !self.families.is_empty() && node.endpoint(&self.families).is_none() {
            found.push(problem(
                &subject,
                "it publishes no endpoint that this node can send to",
                "see the endpoints that meshd is configured with on both nodes: they need a family in common",
            ));
        }
        let remedy = "see the Node's meshd.dev annotations and who may write them";
        found.extend(
            node.refused
                .iter()
                .map(|r| problem(&subject, format!("it claims {}: {}", r.what, r.why), remedy)),
        );
        found.extend(self.nodes.lost(node).map(|(prefix, senior)| {
            problem(
                &subject,
                format!("it claims {prefix}, of which the older node {senior} has a part"),
                remedy,
            )
        }));
        found
    }
}

fn subject(resource: &Resource) -> String {
    match resource {
        Resource::Firewall => "firewall".into(),
        Resource::Forward => "forwarding".into(),
        Resource::Device => "device".into(),
        Resource::Peer(key) => format!("peer/{key}"),
        Resource::Route { table, dst, .. } => format!("route/{dst} table {table}"),
        Resource::Rule(from) => format!("rule/{from}"),
        Resource::Attachment(id) if id.container_id.is_empty() => format!("interface/{}", id.ifname),
        Resource::Attachment(id) => format!("attachment/{id}"),
        Resource::Annotations | Resource::NetworkCondition => "api-server".into(),
        Resource::Claim(Family::V4) => "blocks/IPv4".into(),
        Resource::Claim(Family::V6) => "blocks/IPv6".into(),
        Resource::PodEvent(pod, _) => format!("event/{pod}"),
        Resource::Block(cidr) => format!("block/{cidr}"),
        Resource::Kernel => "kernel".into(),
        Resource::Store => "store".into(),
        Resource::Kept(key) => format!("kept/{key}"),
    }
}

fn failing(resource: &Resource, trouble: &Trouble) -> Problem {
    let times = if trouble.attempts == 1 {
        "once".to_owned()
    } else {
        format!("{} times", trouble.attempts)
    };
    let message = format!("failed {times}: {}", trouble.failure.message);
    let remedy = match (trouble.failure.errno, resource) {
        (Some(ENOSPC), _) => "make room where meshd keeps its state; it is tried again",
        (Some(EROFS), Resource::Store | Resource::Kept(_)) => {
            "make meshd's state folder writable; it is tried again"
        }
        // A lease, or a pod's interface.
        (Some(EROFS), Resource::Attachment(_)) => {
            "make meshd's state folder writable, or if it is a sysctl, mount the host's /proc/sys/net as the chart does or \
             set agent.privileged; it is tried again"
        }
        (Some(EROFS), _) => {
            "mount the host's /proc/sys/net as the chart does, or set agent.privileged; it is tried again"
        }
        (_, Resource::Annotations | Resource::NetworkCondition) => {
            "see that meshd may patch its Node; it is tried again"
        }
        (_, Resource::Claim(_) | Resource::Block(_)) => {
            "see that the CustomResourceDefinition of IPBlocks is installed and meshd may write them; it is tried again"
        }
        (_, Resource::Store | Resource::Kept(_)) => "see meshd's state folder; it is tried again",
        _ => "see the kernel's log and meshd's rights; it is tried again",
    };
    problem(subject(resource), message, remedy)
}
