//! What goes in and what comes out: requests, responses, watch frames. No HTTP library's types, so that the
//! simulator needs none.

use serde_json::{Map, Value};
use std::sync::Arc;

/// Longest body that is read, as in kube-apiserver (3 MiB).
pub const BODY_MAX: usize = 3 << 20;
/// Media type of a JSON merge patch (RFC 7386).
pub const MERGE_PATCH: &str = "application/merge-patch+json";
/// Media type of a JSON patch (RFC 6902).
pub const JSON_PATCH: &str = "application/json-patch+json";
/// Media type of a strategic merge patch.
pub const STRATEGIC_MERGE_PATCH: &str = "application/strategic-merge-patch+json";
/// Media type of server-side apply.
pub const APPLY_PATCH: &str = "application/apply-patch+yaml";
/// `Accept` of a client that wants metadata only, for one object.
pub const PARTIAL: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// `Accept` of a client that wants metadata only, for a list.
pub const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Nanoseconds since 1970-01-01T00:00:00Z, as told by whoever drives the server. Simulated or real, it is only
/// ever compared and written into `creationTimestamp` and the like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

/// An HTTP method that the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// get, list, watch
    Get,
    /// create
    Post,
    /// update
    Put,
    /// patch
    Patch,
    /// delete
    Delete,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// Path, without the query: `/api/v1/nodes/n1`.
    pub path: String,
    /// Query parameters, decoded, in order.
    pub query: Vec<(String, String)>,
    /// `Accept`; empty counts as JSON.
    pub accept: String,
    /// `Content-Type`; decides what kind of patch a PATCH is.
    pub content_type: String,
    /// `User-Agent`: its part before the first `/` names the field manager where the query names none.
    pub user_agent: String,
    /// JSON, or YAML where the content type says so.
    pub body: Vec<u8>,
}

impl Request {
    /// A request without query or body.
    #[must_use]
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            accept: String::new(),
            content_type: String::new(),
            user_agent: String::new(),
            body: Vec::new(),
        }
    }

    /// GET of an object or a collection.
    #[must_use]
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::Get, path)
    }

    /// GET of a collection, followed from `resource_version` on, with bookmarks.
    #[must_use]
    pub fn watch(path: impl Into<String>, resource_version: &str) -> Self {
        Self::new(Method::Get, path)
            .with("watch", "true")
            .with("allowWatchBookmarks", "true")
            .with("resourceVersion", resource_version)
    }

    /// POST of an object to a collection.
    #[must_use]
    pub fn create(path: impl Into<String>, object: &Value) -> Self {
        Self::new(Method::Post, path).json(object)
    }

    /// PUT of an object.
    #[must_use]
    pub fn update(path: impl Into<String>, object: &Value) -> Self {
        Self::new(Method::Put, path).json(object)
    }

    /// PATCH by merge patch.
    #[must_use]
    pub fn merge_patch(path: impl Into<String>, patch: &Value) -> Self {
        let mut request = Self::new(Method::Patch, path).json(patch);
        request.content_type = MERGE_PATCH.into();
        request
    }

    /// PATCH by strategic merge patch.
    #[must_use]
    pub fn strategic_patch(path: impl Into<String>, patch: &Value) -> Self {
        let mut request = Self::new(Method::Patch, path).json(patch);
        request.content_type = STRATEGIC_MERGE_PATCH.into();
        request
    }

    /// PATCH by server-side apply.
    #[must_use]
    pub fn apply(path: impl Into<String>, object: &Value, field_manager: &str, force: bool) -> Self {
        let mut request = Self::new(Method::Patch, path).json(object);
        request.content_type = APPLY_PATCH.into();
        request
            .with("fieldManager", field_manager)
            .with("force", if force { "true" } else { "false" })
    }

    /// DELETE of an object at once, without a grace period.
    #[must_use]
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::Delete, path).with("gracePeriodSeconds", "0")
    }

    /// With one more query parameter.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.query.push((key.into(), value.into()));
        self
    }

    /// A list or a watch that asks for metadata only; to be called after it was made one.
    #[must_use]
    pub fn partial(mut self) -> Self {
        let watch = self.query("watch") == Some("true");
        self.accept = if watch { PARTIAL } else { PARTIAL_LIST }.into();
        self
    }

    /// With a body.
    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        self.content_type = "application/json".into();
        self.body = body.to_string().into_bytes();
        self
    }

    /// The value of a query parameter; its first where it is given twice.
    #[must_use]
    pub fn query(&self, key: &str) -> Option<&str> {
        let found = self.query.iter().find(|(k, _)| k == key)?;
        Some(&found.1)
    }
}

/// Names a watch in the life of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// What comes of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The answer.
    Now(Response),
    /// A stream has begun (status 200): its frames come out of `poll_watch`.
    Watch(WatchId),
}

impl Reply {
    /// The answer, of a request that is no watch.
    ///
    /// # Panics
    /// If the reply is a watch.
    #[must_use]
    pub fn response(self) -> Response {
        match self {
            Reply::Now(response) => response,
            Reply::Watch(id) => {
                panic!("the request began a watch ({id:?}); its frames come out of poll_watch")
            }
        }
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// What it holds.
    pub body: Body,
}

impl Response {
    /// Whether the request succeeded.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// What a response holds. Objects are shared with the server's store, so that a thousand clients that list a
/// thousand objects copy none.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// One object, or a `metav1.Status`.
    Object(Arc<Value>),
    /// A list.
    List {
        /// The list without its `items`: `kind`, `apiVersion`, `metadata`.
        header: Value,
        /// Its items.
        items: Vec<Arc<Value>>,
    },
    /// Plain text (`/healthz` and the like).
    Text(&'static str),
}

impl Body {
    /// As one JSON value; copies.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            Body::Object(object) => Value::clone(object),
            Body::List { header, items } => {
                let mut list = header.as_object().cloned().unwrap_or_else(Map::new);
                let no_items = items.is_empty() && header["kind"] == "PartialObjectMetadataList";
                let items = if no_items {
                    Value::Null // as kube-apiserver has it
                } else {
                    items.iter().map(|i| Value::clone(i)).collect()
                };
                list.insert("items".into(), items);
                Value::Object(list)
            }
            Body::Text(text) => Value::String((*text).into()),
        }
    }

    /// As it goes over the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Body::Text(text) => text.as_bytes().to_vec(),
            other => other.to_value().to_string().into_bytes(),
        }
    }

    /// `Content-Type` of [`to_bytes`](Self::to_bytes).
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        match self {
            Body::Text(_) => "text/plain; charset=utf-8",
            _ => "application/json",
        }
    }

    /// The list's items; none for anything else.
    #[must_use]
    pub fn items(&self) -> &[Arc<Value>] {
        match self {
            Body::List { items, .. } => items,
            _ => &[],
        }
    }

    /// `metadata.resourceVersion` of the object or the list.
    #[must_use]
    pub fn resource_version(&self) -> Option<&str> {
        let value = match self {
            Body::Object(object) => object,
            Body::List { header, .. } => header,
            Body::Text(_) => return None,
        };
        value.pointer("/metadata/resourceVersion")?.as_str()
    }
}

/// `type` of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventType {
    /// ADDED
    Added,
    /// MODIFIED
    Modified,
    /// DELETED
    Deleted,
    /// BOOKMARK
    Bookmark,
    /// ERROR: the object is a `metav1.Status`; the watch ends.
    Error,
}

impl EventType {
    /// As in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Added => "ADDED",
            EventType::Modified => "MODIFIED",
            EventType::Deleted => "DELETED",
            EventType::Bookmark => "BOOKMARK",
            EventType::Error => "ERROR",
        }
    }
}

/// One frame of a watch.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchFrame {
    /// A watch event.
    Event {
        /// Its type.
        kind: EventType,
        /// Its object, shared with the store.
        object: Arc<Value>,
    },
    /// The stream ends here: it timed out, fell too far behind, or an ERROR went before. The id is free to forget.
    End,
}

impl WatchFrame {
    /// The event as it goes over the wire, one line; nothing for the end.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let WatchFrame::Event { kind, object } = self else {
            return Vec::new();
        };
        format!("{{\"type\":\"{}\",\"object\":{object}}}\n", kind.as_str()).into_bytes()
    }
}
