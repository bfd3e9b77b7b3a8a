//! The simulation: what there is, and the loop that lets it happen.

use crate::capture::Capture;
use crate::client::Answer;
use crate::cluster::{Ask, Client, Cluster};
use crate::config::Config;
use crate::make;
use crate::nat::Nat;
use crate::node::Node;
use crate::packet::Error;
use crate::queue::Queue;
use crate::trace::Trace;
use crate::traffic::{Place, Traffic};
use crate::underlay::Underlay;
use meshd_apiserver::{ApiServer, Request, Time, WatchFrame};
use meshd_core::{Event, StoreAction};
use meshd_model::status::Status;
use meshd_model::{Boot, NodeName, Now, Wall};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Wall time when the simulation begins: 2026-01-01T00:00:00Z, in nanoseconds.
pub(crate) const EPOCH: u64 = 1_767_225_600 * 1_000_000_000;
/// Boot time of every node when the simulation begins: an hour, so that nothing relies on 0.
pub(crate) const BOOT: u64 = 3600 * 1_000_000_000;
/// UDP port of the nodes' devices.
pub(crate) const WIREGUARD_PORT: u16 = 51820;
/// Events at one nanosecond: more means that time stands still.
const AT_ONCE_MAX: u64 = 50_000_000;

/// What ought never to be. It ends the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("seed {seed}, {} s{}: {what}", self.seconds(), self.place())]
pub struct Violation {
    /// Repeats it.
    pub seed: u64,
    /// Simulated time, in nanoseconds.
    pub at_ns: u64,
    /// Where, if on one node.
    pub node: Option<NodeName>,
    /// What it was.
    pub what: String,
}

impl Violation {
    fn seconds(&self) -> String {
        format!("{}.{:09}", self.at_ns / 1_000_000_000, self.at_ns % 1_000_000_000)
    }

    fn place(&self) -> String {
        self.node
            .as_ref()
            .map_or(String::new(), |node| format!(", {node}"))
    }
}

/// Something that will happen.
#[derive(Debug)]
pub(crate) enum What {
    Agent {
        node: usize,
        epoch: u64,
        event: Box<Event>,
    },
    AgentTimer {
        node: usize,
        epoch: u64,
    },
    Kernel {
        node: usize,
        epoch: u64,
    },
    Store {
        node: usize,
        epoch: u64,
        action: StoreAction,
    },
    TunnelTimer {
        node: usize,
    },
    /// A packet reaches a port of the underlay.
    Arrive {
        port: usize,
        bytes: Vec<u8>,
    },
    /// A packet reaches a pod or the node's own network.
    Deliver {
        node: usize,
        place: Place,
        bytes: Vec<u8>,
    },
    Request {
        node: usize,
        epoch: u64,
        ask: Ask,
        request: Box<Request>,
    },
    Answer {
        node: usize,
        epoch: u64,
        ask: Ask,
        answer: Answer,
    },
    Frame {
        client: Client,
        frame: WatchFrame,
    },
    Follow(Client),
    ApiTimer,
    Kill {
        node: usize,
    },
    Start {
        node: usize,
    },
    /// A node's driver looks at its kernel, because something changed.
    Look {
        node: usize,
    },
    /// The next packet of a stream.
    Stream {
        stream: usize,
    },
}

/// A simulated cluster.
///
/// Whoever drives it: [`Sim::new`], [`start_agent`](Self::start_agent) for each node, then let time pass with
/// [`run_for`](Self::run_for) or [`run_until`](Self::run_until), and do things in between.
pub struct Sim {
    pub(crate) config: Config,
    /// Nanoseconds since the beginning.
    pub(crate) now: u64,
    pub(crate) queue: Queue<What>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) cluster: Cluster,
    pub(crate) underlay: Underlay,
    /// In front of which node there is a NAT.
    pub(crate) nats: BTreeMap<usize, Nat>,
    pub(crate) capture: Capture,
    pub(crate) trace: Trace,
    pub(crate) traffic: Traffic,
    pub(crate) checks: u64,
    pub(crate) handshakes: u64,
    violation: Option<Violation>,
    at_once: u64,
}

impl Sim {
    /// A cluster whose nodes are registered at the API server and whose agents do not run yet.
    #[must_use]
    pub fn new(config: Config) -> Sim {
        let mut sim = Sim::unregistered(config);
        for node in 0..sim.nodes.len() {
            if let Err(problem) = sim.create_node(node) {
                sim.violate(Some(node), format!("the Node cannot be created: {problem}"));
            }
        }
        sim
    }

    /// A cluster whose API server knows no node yet.
    pub(crate) fn unregistered(config: Config) -> Sim {
        let mut underlay = Underlay::new(config.seed, config.link);
        let nodes: Vec<Node> = (0..config.nodes)
            .map(|node| make::node(&config, node, 0))
            .collect();
        for (port, node) in nodes.iter().enumerate() {
            underlay.plug(port, &node.addresses);
            underlay.plug(port, &config.second_addresses(port));
        }
        let (reached, refused) = (config.reached_outside(), config.refused_outside());
        let outside = [reached, refused].concat();
        underlay.plug(nodes.len(), &config.underlay_addresses(nodes.len(), 0));
        underlay.plug(nodes.len() + 1, &outside);
        let mut server = ApiServer::new(make::api_server(&config), Time(EPOCH));
        server.register(crate::client::blocks());
        Sim {
            now: 0,
            queue: Queue::new(),
            nodes,
            cluster: Cluster::new(server),
            underlay,
            nats: BTreeMap::new(),
            capture: Capture::new(outside),
            trace: Trace::new(config.keep_trace),
            traffic: Traffic::default(),
            checks: 0,
            handshakes: 0,
            violation: None,
            at_once: 0,
            config,
        }
    }

    pub(crate) fn nanos(time: Duration) -> u64 {
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Both clocks of every node.
    pub(crate) fn stamp(&self) -> Now {
        Now {
            boot: Boot(BOOT + self.now),
            wall: Wall(EPOCH + self.now),
        }
    }

    /// Simulated time since the beginning.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// How many WireGuard handshakes were answered.
    #[must_use]
    pub fn handshakes(&self) -> u64 {
        self.handshakes
    }

    /// The port of the neighbour on the underlay, who belongs to no node.
    pub(crate) fn neighbour(&self) -> usize {
        self.nodes.len()
    }

    /// The port of the machine outside of the cluster.
    pub(crate) fn outside(&self) -> usize {
        self.nodes.len() + 1
    }

    /// A node's name.
    #[must_use]
    pub fn name(&self, node: usize) -> &NodeName {
        &self.nodes[node].name
    }

    /// What a node's agent says of itself; none while it does not run.
    #[must_use]
    pub fn status(&self, node: usize) -> Option<Status> {
        self.nodes[node]
            .agent
            .as_ref()
            .map(|agent| agent.status(self.stamp()))
    }

    /// Whether a node's agent runs and says that it is ready.
    #[must_use]
    pub fn is_ready(&self, node: usize) -> bool {
        self.nodes[node]
            .agent
            .as_ref()
            .is_some_and(meshd_core::NodeAgent::is_ready)
    }

    /// The hash of everything that has happened.
    #[must_use]
    pub fn trace(&self) -> String {
        self.trace.digest()
    }

    /// What has happened, a line each, where the configuration keeps it.
    #[must_use]
    pub fn trace_text(&self) -> &[String] {
        self.trace.text()
    }

    /// What is wrong, once something is.
    #[must_use]
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub(crate) fn violate(&mut self, node: Option<usize>, what: String) {
        let node = node.map(|node| self.nodes[node].name.clone());
        let violation = Violation {
            seed: self.config.seed,
            at_ns: self.now,
            node,
            what,
        };
        self.violation.get_or_insert(violation);
    }

    /// Counts a check of an invariant, and ends the run where it does not hold.
    pub(crate) fn check(&mut self, node: usize, problem: Option<String>) {
        self.checks += 1;
        if let Some(problem) = problem {
            self.violate(Some(node), problem);
        }
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// What ought never to be, and was.
    pub fn run_for(&mut self, time: Duration) -> Result<(), Violation> {
        self.run_until(time, |_| false).map(|_| ())
    }

    /// Lets time pass until something is so, at most for this long; whether it is.
    ///
    /// # Errors
    /// What ought never to be, and was.
    pub fn run_until(
        &mut self,
        within: Duration,
        mut is: impl FnMut(&Sim) -> bool,
    ) -> Result<bool, Violation> {
        let end = self.now.saturating_add(Sim::nanos(within));
        loop {
            if let Some(violation) = &self.violation {
                return Err(violation.clone());
            }
            if is(self) {
                return Ok(true);
            }
            let Some(at) = self.queue.next_at().filter(|at| *at <= end) else {
                break;
            };
            let Some((_, what)) = self.queue.pop() else { break };
            self.at_once = if at > self.now { 0 } else { self.at_once + 1 };
            self.now = self.now.max(at);
            self.happen(what);
            if self.at_once > AT_ONCE_MAX {
                self.violate(
                    None,
                    format!("more than {AT_ONCE_MAX} events at one moment: time stands still"),
                );
            }
        }
        self.now = end;
        Ok(is(self))
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Agent { node, epoch, event } if self.nodes[node].epoch == epoch => {
                self.agent_event(node, *event)
            }
            What::AgentTimer { node, epoch } if self.nodes[node].epoch == epoch => self.on_agent_timer(node),
            What::Kernel { node, epoch } if self.nodes[node].epoch == epoch => self.on_kernel(node),
            What::Store { node, epoch, action } if self.nodes[node].epoch == epoch => {
                self.on_store(node, epoch, action);
            }
            What::Answer {
                node,
                epoch,
                ask,
                answer,
            } if self.nodes[node].epoch == epoch => {
                self.on_answer(node, ask, &answer);
            }
            // For an earlier run of the daemon.
            What::Agent { .. }
            | What::AgentTimer { .. }
            | What::Kernel { .. }
            | What::Store { .. }
            | What::Answer { .. } => {}
            What::TunnelTimer { node } => self.on_tunnel_timer(node),
            What::Arrive { port, bytes } => self.arrive(port, bytes),
            What::Deliver { node, place, bytes } => self.deliver(node, &place, &bytes),
            What::Request {
                node,
                epoch,
                ask,
                request,
            } => self.on_request(node, epoch, ask, *request),
            What::Frame { client, frame } => self.on_frame(client, &frame),
            What::Follow(client) => self.on_follow(client),
            What::ApiTimer => self.on_api_timer(),
            What::Kill { node } => self.kill_agent(node),
            What::Start { node } => self.start_agent(node),
            What::Look { node } => self.observe(node),
            What::Stream { stream } => self.on_stream(stream),
        }
    }

    /// The error that a packet met where it was sent, as a socket tells it.
    pub(crate) fn errno(why: Error) -> &'static str {
        match why {
            Error::Unreachable => "no route to host",
            Error::Port => "connection refused",
            Error::TooBig { .. } => "message too long",
        }
    }
}
