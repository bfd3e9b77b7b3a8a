//! Whoever lists and follows knows what the server holds, whatever is done to it, wherever he began.

use meshd_apiserver::{ApiServer, Config, EventType, Reply, Request, Time, WatchFrame, WatchId};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

const NODES: &str = "/api/v1/nodes";

#[derive(Clone, Debug)]
enum Op {
    Create(u8),
    Delete(u8),
    Label(u8, bool),
    Apply(u8, u8),
    Compact,
    /// A new follower, of all or of those that are labelled.
    Follow(bool),
    /// A follower's connection breaks.
    Break(u8),
    /// A follower takes what waits for him.
    Take(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..4u8;
    prop_oneof![
        4 => name.clone().prop_map(Op::Create),
        3 => name.clone().prop_map(Op::Delete),
        4 => (name.clone(), any::<bool>()).prop_map(|(n, l)| Op::Label(n, l)),
        3 => (name, 0..3u8).prop_map(|(n, v)| Op::Apply(n, v)),
        1 => Just(Op::Compact),
        1 => any::<bool>().prop_map(Op::Follow),
        2 => any::<u8>().prop_map(Op::Break),
        2 => any::<u8>().prop_map(Op::Take),
    ]
}

/// A client that lists, follows, goes on where it was, and lists again when it is told 410.
struct Follower {
    selector: &'static str,
    known: BTreeMap<String, Arc<Value>>,
    version: Option<String>,
    watch: Option<WatchId>,
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

impl Follower {
    fn connect(&mut self, server: &mut ApiServer) {
        if self.version.is_none() {
            let list = Request::get(NODES).with("labelSelector", self.selector).partial();
            let list = server.handle(Time(0), list).response();
            self.known = list
                .body
                .items()
                .iter()
                .map(|o| (name_of(o), o.clone()))
                .collect();
            self.version = list.body.resource_version().map(str::to_owned);
        }
        let version = self.version.as_deref().unwrap();
        let watch = Request::watch(NODES, version)
            .with("labelSelector", self.selector)
            .partial();
        let Reply::Watch(id) = server.handle(Time(0), watch) else {
            panic!("no watch");
        };
        self.watch = Some(id);
    }

    /// Takes all that waits; connects again where that is needed.
    fn take(&mut self, server: &mut ApiServer) {
        for _ in 0..4 {
            let Some(id) = self.watch else {
                self.connect(server);
                continue;
            };
            while let Some(frame) = server.poll_frame(id) {
                match frame {
                    WatchFrame::End => self.watch = None,
                    WatchFrame::Event { kind, object } => self.event(kind, object),
                }
            }
        }
    }

    fn event(&mut self, kind: EventType, object: Arc<Value>) {
        if kind == EventType::Error {
            assert_eq!(object["code"], 410);
            self.version = None;
            return;
        }
        self.version = object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let name = name_of(&object);
        match kind {
            EventType::Added => assert!(self.known.insert(name, object).is_none(), "ADDED twice"),
            EventType::Modified => {
                assert!(self.known.insert(name, object).is_some(), "MODIFIED before ADDED")
            }
            EventType::Deleted => assert!(self.known.remove(&name).is_some(), "DELETED before ADDED"),
            EventType::Bookmark | EventType::Error => {}
        }
    }
}

fn carry_out(server: &mut ApiServer, followers: &mut Vec<Follower>, op: &Op) {
    let path = |n: &u8| format!("{NODES}/n{n}");
    let request = match op {
        Op::Create(n) => Request::create(NODES, &json!({"metadata": {"name": format!("n{n}")}})),
        Op::Delete(n) => Request::delete(path(n)),
        Op::Label(n, on) => {
            let value = if *on { json!("y") } else { Value::Null };
            Request::merge_patch(path(n), &json!({"metadata": {"labels": {"x": value}}}))
        }
        Op::Apply(n, value) => {
            let body = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"annotations": {"k": value.to_string()}}});
            Request::apply(path(n), &body, "m", true)
        }
        Op::Compact => return server.compact(),
        Op::Follow(all) => {
            let selector = if *all { "" } else { "x=y" };
            let mut new = Follower {
                selector,
                known: BTreeMap::new(),
                version: None,
                watch: None,
            };
            new.connect(server);
            return followers.push(new);
        }
        Op::Break(which) | Op::Take(which) => {
            let count = followers.len().max(1);
            let Some(follower) = followers.get_mut(usize::from(*which) % count) else {
                return;
            };
            if matches!(op, Op::Take(_)) {
                return follower.take(server);
            }
            return follower
                .watch
                .take()
                .into_iter()
                .for_each(|id| server.close_watch(id));
        }
    };
    let status = server.handle(Time(0), request).response().status;
    assert!(matches!(status, 200 | 201 | 404 | 409), "{op:?}: {status}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn followers_know_what_the_server_holds(
        ops in prop::collection::vec(op(), 1..80),
        history in 1..20usize,
        watch_queue in 1..10usize,
    ) {
        let config = Config { history, watch_queue, ..Config::default() };
        let mut server = ApiServer::new(config, Time(0));
        let mut followers = Vec::new();
        for op in &ops {
            carry_out(&mut server, &mut followers, op);
        }
        for follower in &mut followers {
            follower.take(&mut server);
            let list = Request::get(NODES).with("labelSelector", follower.selector).partial();
            let list = server.handle(Time(0), list).response();
            let held: BTreeMap<String, Arc<Value>> =
                list.body.items().iter().map(|o| (name_of(o), o.clone())).collect();
            prop_assert_eq!(&follower.known, &held);
        }
    }
}
