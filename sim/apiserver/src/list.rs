//! Lists: which resource version is asked for, and the pages of a list that is too long for one.

use crate::object::meta;
use crate::request::{Body, Request, Response};
use crate::resource::Resource;
use crate::route::number;
use crate::status::{Cause, Failure, Result};
use crate::store::{Key, Snapshot, Store};
use crate::watch::{Form, Scope};
use serde_json::{Value, json};
use std::sync::Arc;

/// A place in a list that is continued: the revision at which it began and the last key that was given.
struct Continue {
    revision: u64,
    after: Key,
}

impl Continue {
    fn encode(&self) -> String {
        format!("{}/{}/{}", self.revision, self.after.namespace, self.after.name)
    }

    fn decode(token: &str) -> Result<Self> {
        let bad = || Failure::bad_request("invalid continue token: continue key is not valid");
        let mut parts = token.splitn(3, '/');
        let mut part = || parts.next().ok_or_else(bad);
        let revision = part()?.parse().map_err(|_| bad())?;
        let (namespace, name) = (part()?.to_owned(), part()?.to_owned());
        Ok(Self {
            revision,
            after: Key { namespace, name },
        })
    }
}

/// `resourceVersion` as a number; 0 and nothing both mean that any will do.
pub(crate) fn version(request: &Request) -> Result<Option<u64>> {
    let Some(text) = request.query("resourceVersion").filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| {
        let message = format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        );
        Failure::internal(message)
    })
}

/// Answers a list.
pub(crate) fn list(store: &Store, resource: &Resource, scope: &Scope, request: &Request) -> Result<Response> {
    let limit = number(request, "limit")?.filter(|l| *l > 0);
    let token = request
        .query("continue")
        .filter(|t| !t.is_empty())
        .map(Continue::decode)
        .transpose()?;
    let (revision, exact) = match &token {
        Some(token) => (token.revision, true),
        None => revision(store, request)?,
    };
    let past = if exact && revision != store.revision() {
        let gone = |_| Failure::expired(too_old(token.is_some(), revision));
        Some(store.table_at(scope.table, revision).map_err(gone)?)
    } else {
        None
    };
    let table = past.as_ref().unwrap_or(store.table(scope.table));
    let selected = |(key, snapshot): &(&Key, &Arc<Snapshot>)| scope.selects_at(key, snapshot);
    let after = |(key, _): &(&Key, &Arc<Snapshot>)| token.as_ref().is_none_or(|t| **key > t.after);
    let mut rest = table.iter().filter(after).filter(selected);

    let take = limit.map_or(usize::MAX, |l| usize::try_from(l).unwrap_or(usize::MAX));
    let page: Vec<(&Key, &Arc<Snapshot>)> = rest.by_ref().take(take).collect();
    let left = rest.count();
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if let (Some((last, _)), true) = (page.last(), left > 0) {
        let after = Key::clone(last);
        metadata["continue"] = Continue { revision, after }.encode().into();
        metadata["remainingItemCount"] = left.into();
    }
    let header = match scope.form {
        Form::Full => {
            json!({"kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(), "metadata": metadata})
        }
        Form::Partial => {
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
        }
    };
    let items = page.into_iter().map(|(_, s)| item(scope.form, s)).collect();
    Ok(Response {
        status: 200,
        body: Body::List { header, items },
    })
}

/// Whole objects in a list name neither their kind nor its version.
fn item(form: Form, snapshot: &Snapshot) -> Arc<Value> {
    if form == Form::Partial {
        return snapshot.partial().clone();
    }
    let fields = snapshot.object.as_object().into_iter().flatten();
    let kept = fields.filter(|(f, _)| !matches!(f.as_str(), "kind" | "apiVersion"));
    Arc::new(Value::Object(kept.map(|(f, v)| (f.clone(), v.clone())).collect()))
}

/// The revision that a list is to have, and whether it must be just that.
fn revision(store: &Store, request: &Request) -> Result<(u64, bool)> {
    let current = store.revision();
    let rule = request.query("resourceVersionMatch").filter(|m| !m.is_empty());
    let forbidden = |why: &str| {
        let cause = Cause::forbidden("resourceVersionMatch", why);
        Err(Failure::invalid_options("ListOptions", cause))
    };
    match (version(request)?, rule) {
        (None, Some(_)) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (Some(0), Some("Exact")) => {
            forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
        }
        (_, Some(rule)) if !matches!(rule, "Exact" | "NotOlderThan") => {
            forbidden("supported values: \"Exact\", \"NotOlderThan\"")
        }
        (Some(asked), _) if asked > current => Err(Failure::version_too_large(asked, current)),
        (Some(asked), Some("Exact")) => Ok((asked, true)),
        _ => Ok((current, false)),
    }
}

fn too_old(continued: bool, revision: u64) -> String {
    if continued {
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.".into()
    } else {
        format!("The resourceVersion for the provided list is too old: {revision}")
    }
}

/// The key of an object of the store.
pub(crate) fn key_of(object: &Value) -> Key {
    let text = |field| meta(object, field).unwrap_or_default().to_owned();
    Key {
        namespace: text("namespace"),
        name: text("name"),
    }
}
