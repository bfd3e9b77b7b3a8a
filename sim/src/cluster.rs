//! The cluster's API server in simulated time, and who talks to it: the nodes' daemons over connections that take
//! time and break, and the cluster's administrator at once.

use crate::client::{Answer, FOLLOWED, Followed, Next, blocks};
use crate::sim::{Sim, What};
use crate::trace::Kind;
use ipnetwork::IpNetwork;
use meshd_apiserver::{ApiServer, Reply, Request, Response, Time, WatchFrame, WatchId};
use meshd_core::{ActionId, BlockOp, Event, Failure, KubeAction, KubeEvent, Resource};
use meshd_model::NodeName;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The API server.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) up: bool,
    timer: Option<u64>,
    watches: BTreeMap<WatchId, Client>,
    /// Counts frames that brought a change to a daemon.
    pub(crate) watch_events: u64,
}

/// Whose a watch is: node, run of its daemon, what it follows, and the request that began it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) node: usize,
    pub(crate) epoch: u64,
    pub(crate) what: Followed,
    pub(crate) generation: u64,
}

/// What a daemon asked for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// The next list or watch.
    Follow(Client),
    /// To publish.
    Publish(ActionId),
}

impl Cluster {
    pub(crate) fn new(server: ApiServer) -> Cluster {
        Cluster {
            server,
            up: true,
            timer: None,
            watches: BTreeMap::new(),
            watch_events: 0,
        }
    }
}

/// File exists: what a claim is told of a block that somebody has.
const EEXIST: i32 = 17;

fn block_request(node: &NodeName, cidr: IpNetwork, op: &BlockOp) -> Request {
    use meshd_translate::blocks::{claim_body, delete_body, release_body};
    let all = blocks().collection("");
    let one = format!("{all}/{}", meshd_model::block::name(cidr));
    match op {
        BlockOp::Claim { uid } => Request::create(all, &claim_body(cidr, node, uid)),
        BlockOp::Release { object } => Request::merge_patch(one, &release_body(object)),
        BlockOp::Delete { object } => Request::delete(one).json(&delete_body(object)),
    }
}

impl Sim {
    pub(crate) fn api_time(&self) -> Time {
        Time(self.stamp().wall.0)
    }

    /// A request of the administrator, carried out at once.
    ///
    /// # Errors
    /// What the server answered, or that it is away.
    pub fn admin(&mut self, request: Request) -> Result<Value, String> {
        if !self.cluster.up {
            return Err("the API server is away".to_owned());
        }
        let what = format!("{:?} {}", request.method, request.path);
        self.trace
            .bytes(self.now, usize::MAX, Kind::Driver, what.as_bytes());
        let Reply::Now(Response { status, body }) = self.cluster.server.handle(self.api_time(), request)
        else {
            return Err(format!("{what}: watches are for daemons"));
        };
        self.pump_api();
        if (200..300).contains(&status) {
            return Ok(body.to_value());
        }
        let body = body.to_value();
        Err(format!(
            "{what}: status {status}: {}",
            body["message"].as_str().unwrap_or_default()
        ))
    }

    /// Stops or restarts the API server; it keeps its objects. When it stops, every watch breaks.
    pub fn set_api_server(&mut self, up: bool) {
        self.trace.bytes(
            self.now,
            usize::MAX,
            Kind::Driver,
            if up { b"api up" } else { b"api down" },
        );
        self.cluster.up = up;
        if up {
            return;
        }
        for (id, client) in std::mem::take(&mut self.cluster.watches) {
            self.cluster.server.close_watch(id);
            self.push_api(What::Frame {
                client,
                frame: WatchFrame::End,
            });
        }
    }

    /// Creates a Node as a kubelet does.
    ///
    /// # Errors
    /// The API server refuses it, or is away.
    pub fn create_node(&mut self, node: usize) -> Result<(), String> {
        let NodeName(name) = &self.nodes[node].name;
        let internal = self.nodes[node]
            .addresses
            .iter()
            .map(|a| json!({ "type": "InternalIP", "address": a }));
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
            "status": { "addresses": internal.collect::<Vec<_>>() },
        });
        self.admin(Request::create("/api/v1/nodes", &object)).map(|_| ())
    }

    pub(crate) fn begin_client(&mut self, node: usize) {
        for what in FOLLOWED {
            if what == Followed::Blocks && self.config.pool.is_none() {
                continue;
            }
            self.follow(node, what);
        }
    }

    fn follow(&mut self, node: usize, what: Followed) {
        let epoch = self.nodes[node].epoch;
        let (generation, request) = self.nodes[node].client.request(what);
        let ask = Ask::Follow(Client {
            node,
            epoch,
            what,
            generation,
        });
        self.push_api(What::Request {
            node,
            epoch,
            ask,
            request: Box::new(request),
        });
    }

    pub(crate) fn kube_action(&mut self, node: usize, action: KubeAction) {
        let name = &self.nodes[node].name;
        let (id, request) = match action {
            KubeAction::Publish { id, uid, annotations } => {
                let body = meshd_translate::publish_body(name, &uid, &annotations);
                let manager = meshd_translate::FIELD_MANAGER;
                let path = format!("/api/v1/nodes/{name}");
                (id, Request::apply(path, &body, manager, true))
            }
            KubeAction::ClearNetworkUnavailable { id, uid, at } => {
                let body = meshd_translate::network_body(&uid, at);
                let path = format!("/api/v1/nodes/{name}/status");
                let patch = Request::strategic_patch(path, &body);
                (id, patch.with("fieldManager", meshd_translate::CONDITION_MANAGER))
            }
            KubeAction::PodEvent { id, event, at } => {
                let body = meshd_translate::pod_event_body(name, &event, at);
                let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", event.pod.namespace);
                (id, Request::create(path, &body))
            }
            KubeAction::Block { id, cidr, op } => (id, block_request(name, cidr, &op)),
        };
        let epoch = self.nodes[node].epoch;
        self.push_api(What::Request {
            node,
            epoch,
            ask: Ask::Publish(id),
            request: Box::new(request),
        });
    }

    fn push_api(&mut self, what: What) {
        let at = self.now + Sim::nanos(self.config.api_latency);
        self.queue.push(at, what);
    }

    /// A request has reached the server.
    pub(crate) fn on_request(&mut self, node: usize, epoch: u64, ask: Ask, request: Request) {
        let answer = if !self.cluster.up || self.nodes[node].epoch != epoch {
            Answer::Refused
        } else {
            match self.cluster.server.handle(self.api_time(), request) {
                Reply::Now(response) => Answer::Response(response),
                Reply::Watch(id) => self.begun(id, &ask),
            }
        };
        self.push_api(What::Answer {
            node,
            epoch,
            ask,
            answer,
        });
        self.pump_api();
    }

    fn begun(&mut self, id: WatchId, ask: &Ask) -> Answer {
        match ask {
            Ask::Follow(client) => {
                self.cluster.watches.insert(id, *client);
            }
            Ask::Publish(_) => self.cluster.server.close_watch(id),
        }
        Answer::Begun
    }

    /// An answer has reached the daemon.
    pub(crate) fn on_answer(&mut self, node: usize, ask: Ask, answer: &Answer) {
        let client = match ask {
            Ask::Follow(client) => client,
            Ask::Publish(id) => return self.published(node, id, answer),
        };
        if !self.nodes[node].client.is_current(client.what, client.generation) {
            return;
        }
        let (events, next) = self.nodes[node].client.answered(client.what, answer);
        if let Answer::Response(response) = answer {
            self.cluster.watch_events += response.body.items().len() as u64;
        }
        self.proceed(client, next);
        for event in events {
            self.agent_event(node, Event::Kube(event));
        }
    }

    fn published(&mut self, node: usize, id: ActionId, answer: &Answer) {
        let is_block = matches!(id.resource, Resource::Claim(_) | Resource::Block(_));
        let what = if is_block {
            "writing a block"
        } else {
            "writing the Node"
        };
        let mut errno = None;
        let message = match answer {
            Answer::Response(response) if response.is_success() => {
                return self.agent_event(node, Event::Kube(KubeEvent::Applied(id)));
            }
            Answer::Response(response) => {
                let body = response.body.to_value();
                if body["reason"] == "AlreadyExists" {
                    errno = Some(EEXIST);
                }
                format!(
                    "{what}: status {}: {}",
                    response.status,
                    body["message"].as_str().unwrap_or_default()
                )
            }
            _ => {
                let message = format!("{what}: connection refused");
                self.agent_event(
                    node,
                    Event::Kube(KubeEvent::Unreachable {
                        message: message.clone(),
                    }),
                );
                message
            }
        };
        let failure = Failure { errno, message };
        self.agent_event(node, Event::Kube(KubeEvent::Failed { id, failure }));
    }

    /// A frame of a watch has reached the daemon.
    pub(crate) fn on_frame(&mut self, client: Client, frame: &WatchFrame) {
        let node = &mut self.nodes[client.node];
        if node.epoch != client.epoch || !node.client.is_current(client.what, client.generation) {
            return;
        }
        let (event, next) = node.client.frame(client.what, frame);
        self.proceed(client, next);
        if let Some(event) = event {
            self.cluster.watch_events += 1;
            self.agent_event(client.node, Event::Kube(event));
        }
    }

    fn proceed(&mut self, client: Client, next: Next) {
        if let Next::After(wait) = next {
            let at = self.now + Sim::nanos(wait);
            self.queue.push(at, What::Follow(client));
        }
    }

    /// It is time for the next request.
    pub(crate) fn on_follow(&mut self, client: Client) {
        let node = &self.nodes[client.node];
        if node.epoch == client.epoch && node.client.is_current(client.what, client.generation) {
            self.follow(client.node, client.what);
        }
    }

    pub(crate) fn on_api_timer(&mut self) {
        self.cluster.timer = None;
        self.cluster.server.handle_timeout(self.api_time());
        self.pump_api();
    }

    /// Sends what the server has for its watches, and sets its timer.
    pub(crate) fn pump_api(&mut self) {
        while let Some((id, frame)) = self.cluster.server.poll_watch() {
            let client = self.cluster.watches.get(&id).copied();
            let Some(client) = client.filter(|c| self.nodes[c.node].epoch == c.epoch) else {
                self.cluster.watches.remove(&id);
                self.cluster.server.close_watch(id);
                continue;
            };
            if frame == WatchFrame::End {
                self.cluster.watches.remove(&id);
            }
            self.push_api(What::Frame { client, frame });
        }
        let Some(Time(due)) = self.cluster.server.poll_timeout() else {
            return;
        };
        let at = due.saturating_sub(crate::sim::EPOCH).max(self.now);
        if self.cluster.timer.is_none_or(|timer| at < timer) {
            self.cluster.timer = Some(at);
            self.queue.push(at, What::ApiTimer);
        }
    }
}
