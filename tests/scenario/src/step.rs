//! What can be done to a cluster, and what is expected then: the steps of a scenario.

use crate::time::Span;
use serde::{Deserialize, Serialize};

/// One step. Nodes are named by number, the first is 1, so that a scenario fits every arm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "do",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Step {
    /// Sends the marker in the clear on the underlay, so that the capture proves that it sees.
    ControlMarker {},
    /// Waits until every agent says that it is ready.
    WaitReady {
        /// How long at most, for all of them.
        #[serde(default = "within")]
        within: Span,
    },
    /// Adds pods with CNI ADD.
    AddPods {
        /// How many on each node.
        per_node: usize,
    },
    /// Every pod reaches every other pod in both families.
    EveryoneReachesEveryone {
        /// How long until all of them do.
        #[serde(default = "within")]
        within: Span,
        /// Bytes of the payload that goes there and back.
        #[serde(default = "payload")]
        payload: usize,
        /// With more pairs than this, as many of them are tried, each pod among them.
        #[serde(default = "at_most")]
        at_most: usize,
    },
    /// Every node reaches every pod, and every pod every node's own addresses.
    NodesAndPods {
        /// How long until all of them do.
        #[serde(default = "within")]
        within: Span,
        /// With more pairs than this, as many of them are tried.
        #[serde(default = "at_most")]
        at_most: usize,
    },
    /// kill -9 of an agent during a stream loses no packet, beside a stream between other nodes.
    KillAgentUnderStream {
        /// Whose agent.
        node: usize,
        /// Between two packets.
        #[serde(default = "interval")]
        interval: Span,
        /// How long the stream runs before.
        #[serde(default = "second")]
        before: Span,
        /// How long the agent stays away.
        #[serde(default = "second")]
        down: Span,
        /// How long the stream runs after the agent is ready again.
        #[serde(default = "second")]
        after: Span,
    },
    /// Kills an agent, if it runs, and overwrites one of its Node's annotations: the node becomes unreachable.
    DamageAnnotation {
        /// Whose.
        node: usize,
        /// Full key.
        annotation: String,
        /// The new text.
        value: String,
        /// How long until no one reaches the node's pods.
        #[serde(default = "within")]
        within: Span,
    },
    /// The same, but the annotation is removed.
    RemoveAnnotation {
        /// Whose.
        node: usize,
        /// Full key.
        annotation: String,
        /// How long until no one reaches the node's pods.
        #[serde(default = "within")]
        within: Span,
    },
    /// Starts a killed agent again: it mends its annotations, and its node's pods are reachable again.
    RestoreAgent {
        /// Whose.
        node: usize,
        /// How long until they are.
        #[serde(default = "within")]
        within: Span,
    },
    /// Deletes a Node and creates it again with a new UID; its pods are deleted and added again, and are reachable.
    RecreateNode {
        /// Which.
        node: usize,
        /// How long until they are.
        #[serde(default = "within")]
        within: Span,
    },
    /// kill -9 of a WireGuard device that is a process, and its start: what others send to its node arrives again soon,
    /// though they still hold sessions that it has lost.
    RestartDevice {
        /// Whose.
        node: usize,
        /// How long what is sent may be lost at most.
        #[serde(default = "soon")]
        within: Span,
        /// How long the stream runs after the restart.
        #[serde(default = "twenty_seconds")]
        after: Span,
    },
    /// A node is given other addresses on the underlay: they are published, and its pods are reached again.
    ChangeAddresses {
        /// Whose.
        node: usize,
        /// How long until they are published.
        #[serde(default = "soon")]
        published: Span,
        /// How long until its pods are reached.
        #[serde(default = "within")]
        within: Span,
    },
    /// Every pod reaches a machine outside of the cluster, which sees its node's address, and not the addresses of that
    /// machine that pods are refused.
    WorldOutside {
        /// How long until all of them do.
        #[serde(default = "within")]
        within: Span,
    },
    /// Every node is reached at the addresses of its second interface, which it publishes, and at no others.
    SecondInterface {
        /// How long until all of them are.
        #[serde(default = "within")]
        within: Span,
    },
    /// After a silence, a node behind a NAT that sends keepalives is reached, and one that sends none is not. Once the
    /// first one's NAT has forgotten everything, it is reached again.
    BehindNat {
        /// The one that sends them.
        node: usize,
        /// The one that sends none.
        control: usize,
        /// How long nothing is sent.
        silence: Span,
        /// How long until nodes are reached that are to be.
        #[serde(default = "within")]
        within: Span,
    },
    /// A neighbour on the underlay sends plaintext to each node's first pod: none arrives.
    NeighbourPlaintext {},
    /// The API server is away: streams lose nothing, DEL works, and an agent that starts meanwhile harms nothing.
    ApiServerAway {
        /// How long.
        r#for: Span,
        /// A node whose first pod is deleted meanwhile, and whose agent is killed and started.
        node: usize,
        /// How long until that agent is ready, once the API server is back.
        #[serde(default = "within")]
        within: Span,
    },
    /// Deletes every pod with CNI DEL.
    DeletePods {},
    /// The capture holds WireGuard, and no pod's address and no marker but those sent in clear on purpose.
    UnderlayIsEncrypted {},
    /// Nothing is left of pods on any node.
    NoResidue {},
    /// Lets time pass.
    Wait {
        /// How long.
        r#for: Span,
    },
}

fn within() -> Span {
    Span::seconds(30)
}

fn soon() -> Span {
    Span::seconds(5)
}

fn twenty_seconds() -> Span {
    Span::seconds(20)
}

fn second() -> Span {
    Span::seconds(1)
}

fn interval() -> Span {
    Span::millis(5)
}

fn payload() -> usize {
    512
}

fn at_most() -> usize {
    1000
}

impl Step {
    /// What it says after `do:`.
    #[must_use]
    pub fn name(&self) -> String {
        let value = serde_json::to_value(self).unwrap_or_default();
        value
            .get("do")
            .and_then(|v| v.as_str())
            .unwrap_or_default()
            .to_owned()
    }

    /// The node it is about, where it is about one.
    #[must_use]
    pub fn node(&self) -> Option<usize> {
        match *self {
            Step::KillAgentUnderStream { node, .. }
            | Step::DamageAnnotation { node, .. }
            | Step::RemoveAnnotation { node, .. }
            | Step::RestoreAgent { node, .. }
            | Step::RecreateNode { node, .. }
            | Step::RestartDevice { node, .. }
            | Step::ChangeAddresses { node, .. }
            | Step::BehindNat { node, .. }
            | Step::ApiServerAway { node, .. } => Some(node),
            _ => None,
        }
    }

    /// The number of the node beside which it is judged, if there is one.
    #[must_use]
    pub fn control(&self) -> Option<usize> {
        match *self {
            Step::BehindNat { control, .. } => Some(control),
            _ => None,
        }
    }
}
