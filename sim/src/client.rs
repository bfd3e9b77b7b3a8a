//! A node's Kubernetes client in small: lists and watches, lists again when its version is too old, comes back after
//! the API server was away. Pure: what to send next and what the agent is told follow from what came.

use crate::random::Random;
use meshd_apiserver::{EventType, Request, Resource, Response, WatchFrame};
use meshd_core::KubeEvent;
use meshd_translate::blocks::{GROUP, KIND, PLURAL, VERSION};
use meshd_translate::{Frame, block_event, node_event, own_node_event, pod_event};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

/// What the daemon follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Followed {
    /// All Nodes, metadata only.
    Nodes,
    /// The own Node, whole.
    OwnNode,
    /// The node's own pods.
    Pods,
    /// All blocks, metadata only, in IPAM's pool mode.
    Blocks,
}

/// All of it, in the order in which it is begun.
pub(crate) const FOLLOWED: [Followed; 4] = [
    Followed::OwnNode,
    Followed::Nodes,
    Followed::Pods,
    Followed::Blocks,
];

/// Back-off after the first failure, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(800), Duration::from_secs(30));
/// Before a watch that ended is begun again.
const PAUSE: Duration = Duration::from_millis(10);

/// What came of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The server's answer.
    Response(Response),
    /// A watch has begun.
    Begun,
    /// The server could not be reached.
    Refused,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for frames.
    Stay,
    /// Send the next request after this time.
    After(Duration),
}

#[derive(Debug, Default)]
struct Follow {
    /// Counts requests, so that a late answer to an earlier one is known for what it is.
    generation: u64,
    /// Where to go on; none: list.
    version: Option<String>,
    failures: u32,
}

/// The client of one run of a daemon.
#[derive(Debug)]
pub(crate) struct Client {
    node: String,
    follows: [Follow; 4],
    chance: Random,
}

impl Client {
    pub(crate) fn new(node: &str, chance: Random) -> Client {
        Client {
            node: node.to_owned(),
            follows: Default::default(),
            chance,
        }
    }

    /// The next request, and its generation.
    pub(crate) fn request(&mut self, what: Followed) -> (u64, Request) {
        let path = match what {
            Followed::Pods => "/api/v1/pods".to_owned(),
            Followed::Blocks => blocks().collection(""),
            Followed::Nodes | Followed::OwnNode => "/api/v1/nodes".to_owned(),
        };
        let selector = match what {
            Followed::Nodes | Followed::Blocks => None,
            Followed::OwnNode => Some(format!("metadata.name={}", self.node)),
            Followed::Pods => Some(format!("spec.nodeName={}", self.node)),
        };
        let follow = &mut self.follows[what as usize];
        follow.generation += 1;
        let mut request = match &follow.version {
            None => Request::get(path),
            Some(version) => Request::watch(path, version),
        };
        if let Some(selector) = selector {
            request = request.with("fieldSelector", &selector);
        }
        request.user_agent = "meshd/sim".to_owned();
        let request = if matches!(what, Followed::Nodes | Followed::Blocks) {
            request.partial()
        } else {
            request
        };
        (follow.generation, request)
    }

    /// Whether an answer or frame of this generation still counts.
    pub(crate) fn is_current(&self, what: Followed, generation: u64) -> bool {
        self.follows[what as usize].generation == generation
    }

    /// Takes in what came of a request.
    pub(crate) fn answered(&mut self, what: Followed, answer: &Answer) -> (Vec<KubeEvent>, Next) {
        let follow = &mut self.follows[what as usize];
        match answer {
            Answer::Begun => {
                follow.failures = 0;
                (Vec::new(), Next::Stay)
            }
            Answer::Response(response) if response.is_success() => {
                follow.version = response.body.resource_version().map(str::to_owned);
                follow.failures = 0;
                (
                    self.listed(what, response.body.items()),
                    Next::After(Duration::ZERO),
                )
            }
            Answer::Response(response) if response.status == 410 => {
                follow.version = None;
                (Vec::new(), Next::After(Duration::ZERO))
            }
            Answer::Response(response) => {
                self.failed(what, format!("answered with status {}", response.status))
            }
            Answer::Refused => self.failed(what, "connection refused".to_owned()),
        }
    }

    /// Takes in a frame of a watch.
    pub(crate) fn frame(&mut self, what: Followed, frame: &WatchFrame) -> (Option<KubeEvent>, Next) {
        let WatchFrame::Event { kind, object } = frame else {
            return (None, Next::After(PAUSE));
        };
        let follow = &mut self.follows[what as usize];
        if *kind == EventType::Error {
            follow.version = None;
            return (None, Next::After(PAUSE));
        }
        if let Some(version) = object
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
        {
            follow.version = Some(version.to_owned());
        }
        let event = match kind {
            EventType::Added | EventType::Modified => self.event(what, object, false),
            EventType::Deleted => self.event(what, object, true),
            EventType::Bookmark | EventType::Error => None,
        };
        (event, Next::Stay)
    }

    fn failed(&mut self, what: Followed, why: String) -> (Vec<KubeEvent>, Next) {
        let follow = &mut self.follows[what as usize];
        let factor = 1 << follow.failures.min(6);
        follow.failures = follow.failures.saturating_add(1);
        // The own Node is listed again, whatever was known: its coming tells the agent that the server is back.
        if what == Followed::OwnNode {
            follow.version = None;
        }
        let most = (BACKOFF.0 * factor).min(BACKOFF.1);
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        let wait = Duration::from_nanos(nanos / 2 + self.chance.below(nanos / 2));
        (
            vec![KubeEvent::Unreachable {
                message: format!("{what:?}: {why}"),
            }],
            Next::After(wait),
        )
    }

    fn listed(&self, what: Followed, items: &[Arc<Value>]) -> Vec<KubeEvent> {
        let events = items.iter().filter_map(|object| self.event(what, object, false));
        match what {
            Followed::OwnNode if items.is_empty() => vec![KubeEvent::OwnNodeDeleted],
            Followed::OwnNode => events.collect(),
            Followed::Nodes => std::iter::once(KubeEvent::NodesReset)
                .chain(events)
                .chain([KubeEvent::NodesSynced])
                .collect(),
            Followed::Pods => std::iter::once(KubeEvent::PodsReset)
                .chain(events)
                .chain([KubeEvent::PodsSynced])
                .collect(),
            Followed::Blocks => std::iter::once(KubeEvent::BlocksReset)
                .chain(events)
                .chain([KubeEvent::BlocksSynced])
                .collect(),
        }
    }

    fn event(&self, what: Followed, object: &Value, gone: bool) -> Option<KubeEvent> {
        // What cannot be used is skipped, as the daemon does after it has said so.
        match what {
            Followed::Nodes => node_event(frame_of(&parse(object.get("metadata")?)?, gone)).ok()?,
            Followed::OwnNode => own_node_event(frame_of(&parse(object)?, gone)).ok()?,
            Followed::Pods => pod_event(&self.node, frame_of(&parse(object)?, gone)).ok()?,
            Followed::Blocks => block_event(frame_of(&parse(object.get("metadata")?)?, gone)).ok()?,
        }
    }
}

/// The kind of blocks' objects.
pub(crate) fn blocks() -> Resource {
    Resource::new(GROUP, VERSION, PLURAL, KIND)
}

fn frame_of<T>(object: &T, gone: bool) -> Frame<&T> {
    if gone {
        Frame::Deleted(object)
    } else {
        Frame::Applied(object)
    }
}

fn parse<T: DeserializeOwned>(object: &Value) -> Option<T> {
    T::deserialize(object).ok()
}
