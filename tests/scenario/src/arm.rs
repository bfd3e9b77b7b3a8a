//! What a cluster must be able to do for a scenario to run on it.

use meshd_model::NodeName;
use meshd_model::status::Status;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// What every payload of a scenario begins with: a packet on the underlay that holds these bytes was not encrypted.
pub const MARKER: &[u8; 20] = b"meshd-payload-marker";

/// Why a step could not be carried out; an expectation that was not met is not one of these.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ArmError(pub String);

/// A pod that was added.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Pod {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Where it runs.
    pub node: NodeName,
    /// What CNI ADD gave it.
    pub addresses: Vec<IpAddr>,
}

/// Who sends, or who is sent to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub enum Site {
    /// A pod.
    Pod(Pod),
    /// A node's own network namespace.
    Node(NodeName),
}

impl Site {
    /// The node it is on, or is.
    #[must_use]
    pub fn node(&self) -> &NodeName {
        match self {
            Site::Pod(pod) => &pod.node,
            Site::Node(node) => node,
        }
    }

    /// The pod's or the node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Site::Pod(pod) => &pod.name,
            Site::Node(node) => &node.0,
        }
    }
}

/// How one site tries another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// One echo request, and its reply with the same payload.
    Icmp,
    /// A payload there and back over UDP, compared.
    Udp,
    /// A payload there and back over TCP, compared.
    Tcp,
}

impl fmt::Display for ProbeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ProbeKind::Icmp => "ICMP",
            ProbeKind::Udp => "UDP",
            ProbeKind::Tcp => "TCP",
        })
    }
}

/// One try. Payloads begin with the marker that the underlay's capture looks for.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Probe {
    /// Who sends.
    pub from: Site,
    /// To which address.
    pub to: IpAddr,
    /// How.
    pub kind: ProbeKind,
    /// Bytes of payload.
    pub payload: usize,
    /// How long to wait for the answer.
    pub timeout: Duration,
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub enum Outcome {
    /// The answer came, and was what was sent.
    Answered(Duration),
    /// Nothing came in time.
    Silent,
    /// Refused at once: an ICMP error, a reset, or the sender's own kernel.
    Refused(String),
    /// An answer came that was not what was sent.
    Garbled(String),
}

/// A stream of numbered datagrams, echoed.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct StreamReport {
    /// Sent.
    pub sent: u64,
    /// Echoes received, duplicates counted once.
    pub received: u64,
}

/// A machine outside of the cluster, which answers at all of its addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Where pods may reach it.
    pub reached: Vec<IpAddr>,
    /// Where they may not: declared exceptions, and 169.254.169.254.
    pub refused: Vec<IpAddr>,
}

/// What was seen on the underlay since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct UnderlayReport {
    /// All packets.
    pub packets: u64,
    /// WireGuard messages among them.
    pub wireguard: u64,
    /// Packets that carry a pod's address in the clear, not counting those that `neighbour_sends` sent.
    pub pod_addresses: u64,
    /// Packets that carry the marker in the clear, not counting those sent on purpose, nor those with the
    /// [machine outside](Outside) at one end.
    pub markers: u64,
    /// Packets with the marker that the machine outside was sent, by who sent them.
    pub outside: BTreeMap<IpAddr, u64>,
    /// Packets with the marker that were sent in the clear on purpose, and seen: at least one, or the capture proves nothing.
    pub control_markers: u64,
    /// Packets that the capture lost: must be 0 for it to prove anything.
    pub drops: u64,
    /// The first few packets that ought not to be there, one line each.
    pub offenders: Vec<String>,
}

/// A cluster that scenarios run on. Calls block; in the simulator they advance simulated time.
pub trait Arm {
    /// `sim`, `netns`, ...
    fn name(&self) -> &'static str;
    /// The nodes, in order.
    fn nodes(&self) -> Vec<NodeName>;
    /// A node's own underlay addresses.
    fn node_addresses(&self, node: &NodeName) -> Vec<IpAddr>;
    /// Whether the arm can send such probes.
    fn can(&self, kind: ProbeKind) -> bool;
    /// Time since the arm came up, as the arm counts it: a scenario reads no other clock.
    fn elapsed(&self) -> Duration;
    /// Lets time pass.
    fn wait(&mut self, time: Duration);
    /// Waits until the node's agent says it is ready.
    fn wait_ready(&mut self, node: &NodeName, within: Duration) -> Result<(), ArmError>;
    /// What the node's agent says of itself (`meshctl status`).
    fn status(&mut self, node: &NodeName) -> Result<Status, ArmError>;
    /// Creates or replaces the objects of Kubernetes manifests (YAML, one or more documents).
    fn apply(&mut self, manifests: &str) -> Result<(), ArmError>;
    /// Creates the pod at the API server and attaches it with CNI ADD.
    fn add_pod(&mut self, node: &NodeName, name: &str) -> Result<Pod, ArmError>;
    /// Detaches the pod with CNI DEL and deletes it at the API server; where that is away, once it is back.
    fn delete_pod(&mut self, pod: &Pod) -> Result<(), ArmError>;
    /// Carries probes out, side by side where it can; outcomes in the same order.
    fn probe(&mut self, probes: &[Probe]) -> Result<Vec<Outcome>, ArmError>;
    /// Starts a stream of numbered datagrams, one each `interval`; returns its number.
    fn start_stream(&mut self, from: &Pod, to: &Pod, interval: Duration) -> Result<usize, ArmError>;
    /// Ends a stream: no more is sent, a second is left for answers.
    fn stop_stream(&mut self, stream: usize) -> Result<StreamReport, ArmError>;
    /// kill -9 of the node's agent.
    fn kill_agent(&mut self, node: &NodeName) -> Result<(), ArmError>;
    /// Starts the agent again.
    fn start_agent(&mut self, node: &NodeName) -> Result<(), ArmError>;
    /// The attachments that the node's agent knows: container ids.
    fn attachments(&mut self, node: &NodeName) -> Result<Vec<String>, ArmError>;
    /// Writes annotations of a Node as an administrator; None removes one. The node's own agent, if it runs, mends
    /// them: kill it first where they shall stay so.
    fn annotate(&mut self, node: &NodeName, annotations: &[(&str, Option<&str>)]) -> Result<(), ArmError>;
    /// Stops or restarts the API server; it keeps its objects.
    fn set_api_server(&mut self, up: bool) -> Result<(), ArmError>;
    /// Deletes a Node and creates it again under its name with a new UID.
    fn recreate_node(&mut self, node: &NodeName) -> Result<(), ArmError>;
    /// kill -9 of the node's WireGuard device, where that is a process of its own, and its start: keys, peers and sessions
    /// are gone.
    fn restart_device(&mut self, node: &NodeName) -> Result<(), ArmError> {
        Err(cannot(self.name(), "restart the device", node))
    }
    /// Gives the node other addresses on the underlay, and has its kubelet say so in the Node's status.
    fn change_addresses(&mut self, node: &NodeName) -> Result<(), ArmError> {
        Err(cannot(self.name(), "change the addresses", node))
    }
    /// The addresses of the node's second interface on the underlay, if it has one.
    fn second_interface(&self, _node: &NodeName) -> Vec<IpAddr> {
        Vec::new()
    }
    /// The NAT in front of the node forgets everything.
    fn restart_nat(&mut self, node: &NodeName) -> Result<(), ArmError> {
        Err(cannot(self.name(), "restart the NAT", node))
    }
    /// The endpoints that the node publishes, as the API server has them.
    fn endpoints(&mut self, node: &NodeName) -> Result<Vec<IpAddr>, ArmError> {
        Err(cannot(self.name(), "read the endpoints", node))
    }
    /// The machine outside of the cluster.
    fn outside(&self) -> Result<Outside, ArmError> {
        let message = format!("the arm {} has no machine outside of the cluster", self.name());
        Err(ArmError(message))
    }
    /// A neighbour on the underlay sends UDP in plaintext to a pod's address, through its node; whether it arrived.
    fn neighbour_sends(&mut self, to: &Pod) -> Result<bool, ArmError>;
    /// Sends the marker in the clear on the underlay, on purpose.
    fn send_control_marker(&mut self) -> Result<(), ArmError>;
    /// What the underlay's capture has seen.
    fn underlay(&mut self) -> Result<UnderlayReport, ArmError>;
    /// What is left of pods on the nodes: interfaces, routes, rules, leases; one line each.
    fn residue(&mut self) -> Result<Vec<String>, ArmError>;
}

fn cannot(arm: &str, what: &str, node: &NodeName) -> ArmError {
    ArmError(format!("the arm {arm} cannot {what} of {node}"))
}

/// The addresses in the text of an annotation, which separates them with commas.
///
/// # Errors
/// Names what is no address.
pub fn addresses(text: &str) -> Result<Vec<IpAddr>, ArmError> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    let parse = |part: &str| {
        part.parse()
            .map_err(|_| ArmError(format!("{part:?} is no address")))
    };
    parts.map(parse).collect()
}
