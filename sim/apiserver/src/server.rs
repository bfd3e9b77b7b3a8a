//! The server itself: from a request to what it touches.

use crate::config::Config;
use crate::node_ipam::Allocator;
use crate::request::{BODY_MAX, Body, Method, Reply, Request, Response, Time, WatchFrame, WatchId};
use crate::resource::{Resource, builtin};
use crate::route::{Target, field_manager, flag, form, number, target};
use crate::selector::Selector;
use crate::status::{Cause, Failure, Result};
use crate::store::{Key, Snapshot, Store, Table};
use crate::text::Seeded;
use crate::watch::{Form, Scope, Watches};
use crate::{discovery, list};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Most watches at one time; a request for one more is refused with 429, as by a server under load.
const WATCHES_MAX: usize = 20_000;

/// A small Kubernetes API server without IO.
///
/// Whoever drives it: call [`handle`](Self::handle) for each request, and
/// [`handle_timeout`](Self::handle_timeout) when the time of [`poll_timeout`](Self::poll_timeout) has come; after
/// either, take frames with [`poll_watch`](Self::poll_watch) until it gives nothing, then `poll_timeout` again.
/// [`close_watch`](Self::close_watch) when a watch's client is gone.
///
/// Where it differs from kube-apiserver: there are no users and no admission; only Nodes, Pods and Namespaces have
/// behaviour of their own; lists in objects are owned whole by field managers; no controllers run, save that a
/// deleted Namespace takes its objects along, a deleted Node the cluster-wide objects that it owns, and, if so configured,
/// that new Nodes are given pod CIDRs.
#[derive(Debug)]
pub struct ApiServer {
    pub(crate) resources: Vec<Resource>,
    pub(crate) store: Store,
    pub(crate) watches: Watches,
    pub(crate) uids: Seeded,
    pub(crate) ipam: Option<Allocator>,
    watch_timeout: Duration,
}

impl ApiServer {
    /// A server with the namespaces that every cluster has.
    #[must_use]
    pub fn new(config: Config, now: Time) -> Self {
        let mut server = Self {
            resources: Vec::new(),
            store: Store::new(config.history),
            watches: Watches::new(config.watch_queue, config.bookmark_interval),
            uids: Seeded::new(config.seed),
            ipam: config.node_ipam.as_ref().map(Allocator::new),
            watch_timeout: config.watch_timeout,
        };
        builtin().into_iter().for_each(|r| server.register(r));
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let namespace =
                json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
            let reply = server.handle(now, Request::create("/api/v1/namespaces", &namespace));
            debug_assert!(reply.response().is_success());
        }
        server
    }

    /// Makes one more kind known. One that is known already stays as it is.
    pub fn register(&mut self, resource: Resource) {
        let is = |r: &Resource| {
            (&r.group, &r.version, &r.plural) == (&resource.group, &resource.version, &resource.plural)
        };
        if !self.resources.iter().any(is) {
            self.resources.push(resource);
            self.store.add_table();
        }
    }

    /// The kinds that are known.
    #[must_use]
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Carries a request out.
    pub fn handle(&mut self, now: Time, request: Request) -> Reply {
        match self.answer(now, &request) {
            Ok(reply) => reply,
            Err(failure) => Reply::Now(failure.into_response()),
        }
    }

    /// Does what has come due: bookmarks, watches whose time is over.
    pub fn handle_timeout(&mut self, now: Time) {
        self.watches.handle_timeout(now, self.store.revision());
    }

    /// When to call [`handle_timeout`](Self::handle_timeout) next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        self.watches.poll_timeout()
    }

    /// The next frame of any watch: of the watch with the lowest id first, in its own order.
    pub fn poll_watch(&mut self) -> Option<(WatchId, WatchFrame)> {
        let id = self.watches.ready().next()?;
        let frame = self.watches.poll(id)?;
        Some((id, frame))
    }

    /// The next frame of one watch, for drivers whose clients take theirs at different speeds.
    pub fn poll_frame(&mut self, watch: WatchId) -> Option<WatchFrame> {
        self.watches.poll(watch)
    }

    /// The watches that have frames to take.
    pub fn ready(&self) -> impl Iterator<Item = WatchId> + '_ {
        self.watches.ready()
    }

    /// How many watches there are.
    #[must_use]
    pub fn watch_count(&self) -> usize {
        self.watches.len()
    }

    /// Forgets a watch. One that is not there is no error.
    pub fn close_watch(&mut self, watch: WatchId) {
        self.watches.close(watch);
    }

    /// Drops the history of events, as etcd's compaction does: a watch or a continued list from an older resource
    /// version is answered with 410 Gone from now on.
    pub fn compact(&mut self) {
        self.store.compact();
    }

    /// The newest resource version.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    fn answer(&mut self, now: Time, request: &Request) -> Result<Reply> {
        if request.body.len() > BODY_MAX {
            return Err(Failure::too_large());
        }
        if request.query("dryRun").is_some_and(|d| !d.is_empty()) {
            return Err(Failure::bad_request("this server does not do dry runs"));
        }
        let target = target(&self.resources, &request.path)?;
        let (list, kind) = match &target {
            Target::Collection { table, .. } => (is_list(request), self.resources[*table].kind.as_str()),
            Target::Object { table, .. } => (false, self.resources[*table].kind.as_str()),
            Target::Other => (false, ""),
        };
        let form = form(request, list, kind)?;
        let write = Write { now, request, form };
        let response = match target {
            Target::Other => discovery::answer(&self.resources, request)?,
            Target::Collection { table, namespace } => match request.method {
                Method::Get => return self.collection(&write, table, namespace),
                Method::Post => self.create(&write, table, &namespace)?,
                Method::Delete => self.delete_collection(&write, table, namespace)?,
                _ => return Err(Failure::method_not_allowed()),
            },
            Target::Object {
                table,
                namespace,
                name,
                subresource,
            } => {
                let key = Key { namespace, name };
                self.object(&write, table, key, subresource.as_deref())?
            }
        };
        Ok(Reply::Now(response))
    }

    fn object(
        &mut self,
        write: &Write<'_>,
        table: Table,
        key: Key,
        subresource: Option<&str>,
    ) -> Result<Response> {
        use crate::object::Part;
        let part = match subresource {
            None => Part::Main,
            Some("status") if self.resources[table].status => Part::Status,
            Some("binding") if self.resources[table].is("pods") => return self.bind(write, table, &key),
            Some(_) => return Err(Failure::no_such_resource()),
        };
        match write.request.method {
            Method::Get => {
                let found = self.store.get(table, &key);
                let found = found.ok_or_else(|| Failure::not_found(&self.resources[table], &key.name))?;
                Ok(write.respond(200, found))
            }
            Method::Put => self.replace(write, table, &key, part),
            Method::Patch => self.patch(write, table, &key, part),
            Method::Delete if part == Part::Main => self.delete(write, table, &key),
            _ => Err(Failure::method_not_allowed()),
        }
    }

    pub(crate) fn scope(&self, write: &Write<'_>, table: Table, namespace: String) -> Result<Scope> {
        let resource = &self.resources[table];
        let text = |key| write.request.query(key).unwrap_or_default();
        let (kind, api_version) = match write.form {
            Form::Full => (resource.kind.clone(), resource.api_version()),
            Form::Partial => ("PartialObjectMetadata".into(), "meta.k8s.io/v1".into()),
        };
        Ok(Scope {
            table,
            namespace,
            selector: Selector::parse(resource, text("fieldSelector"), text("labelSelector"))?,
            form: write.form,
            kind,
            api_version,
        })
    }

    fn collection(&mut self, write: &Write<'_>, table: Table, namespace: String) -> Result<Reply> {
        let scope = self.scope(write, table, namespace)?;
        if flag(write.request, "watch") {
            return self.watch(write, scope).map(Reply::Watch);
        }
        let response = list::list(&self.store, &self.resources[table], &scope, write.request)?;
        Ok(Reply::Now(response))
    }

    fn watch(&mut self, write: &Write<'_>, scope: Scope) -> Result<WatchId> {
        let request = write.request;
        let initial = initial_events(request)?;
        let from = list::version(request)?;
        let bookmarks = flag(request, "allowWatchBookmarks");
        let timeout = number(request, "timeoutSeconds")?.filter(|t| *t > 0);
        let timeout = timeout.map_or(self.watch_timeout, Duration::from_secs);
        if self.watches.len() >= WATCHES_MAX {
            return Err(Failure::too_many_watches());
        }
        let id = self.watches.open(write.now, scope.clone(), bookmarks, timeout);
        let from_now = initial || from.is_none_or(|f| f == 0);
        match from.filter(|_| !from_now) {
            Some(from) => match self.store.changes_since(scope.table, from) {
                Ok(changes) => self.watches.catch_up(id, changes),
                Err(expired) => self.watches.fail(id, &expired),
            },
            None => {
                let selected = |(key, s): (&Key, &Arc<Snapshot>)| scope.selects_at(key, s).then(|| s.clone());
                let there: Vec<_> = self
                    .store
                    .table(scope.table)
                    .iter()
                    .filter_map(selected)
                    .collect();
                self.watches.begin(id, &there);
                if bookmarks {
                    self.watches.bookmark(id, self.store.revision(), true);
                }
            }
        }
        Ok(id)
    }
}

fn is_list(request: &Request) -> bool {
    request.method == Method::Get && !flag(request, "watch")
}

/// Whether the watch is to begin with what there is, by `sendInitialEvents`.
fn initial_events(request: &Request) -> Result<bool> {
    let refuse = |field: &str, why: &str| {
        let cause = Cause::forbidden(field, why);
        Err(Failure::invalid_options("ListOptions", cause))
    };
    let rule = request.query("resourceVersionMatch").filter(|m| !m.is_empty());
    let asked = request.query("sendInitialEvents").filter(|s| !s.is_empty());
    match (asked, rule) {
        (None, None) => Ok(false),
        (None, Some(_)) => refuse(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (Some(_), rule) if rule != Some("NotOlderThan") => refuse(
            "resourceVersionMatch",
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
        (Some(asked), _) => Ok(asked == "true"),
    }
}

/// One request, on its way through the server.
pub(crate) struct Write<'a> {
    pub(crate) now: Time,
    pub(crate) request: &'a Request,
    pub(crate) form: Form,
}

impl Write<'_> {
    pub(crate) fn respond(&self, status: u16, snapshot: &Snapshot) -> Response {
        Response {
            status,
            body: Body::Object(self.form.of(snapshot)),
        }
    }

    pub(crate) fn manager(&self) -> String {
        field_manager(self.request)
    }
}
