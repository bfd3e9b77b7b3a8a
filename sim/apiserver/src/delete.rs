//! Delete: at once, with a grace period, behind finalizers.

use crate::object::meta;
use crate::request::{Body, Request, Response, Time};
use crate::resource::Resource;
use crate::route::number;
use crate::server::{ApiServer, Write};
use crate::status::{Failure, Result};
use crate::store::{Key, Table};
use crate::text::rfc3339;
use crate::write::body;
use serde_json::{Value, json};
use std::sync::Arc;

impl ApiServer {
    pub(crate) fn delete(&mut self, write: &Write<'_>, table: Table, key: &Key) -> Result<Response> {
        let resource = self.resources[table].clone();
        let options = options(write.request)?;
        let old = self.store.get(table, key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(&resource, &key.name))?;
        preconditions(&resource, &old.object, &options)?;

        let grace = grace(&resource, &old.object, &options);
        let finalizers = old.object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
        if grace > 0 || finalizers {
            let stored = self.begin_deletion(write.now, table, key, &old.object, grace);
            return Ok(write.respond(200, stored.as_ref().unwrap_or(&old)));
        }
        if resource.is("namespaces") {
            self.empty_namespace(&key.name);
        }
        // Of a pod it is told first that it goes now.
        if resource.is("pods") {
            self.begin_deletion(write.now, table, key, &old.object, 0);
        }
        let change = self.commit(table, key.clone(), None);
        if resource.is("pods") {
            return Ok(write.respond(200, change.gone().unwrap_or(&old)));
        }
        if resource.is("nodes") {
            self.collect_owned(meta(&old.object, "uid").unwrap_or_default());
        }
        let mut details = resource.details(&key.name);
        details["uid"] = meta(&old.object, "uid").unwrap_or_default().into();
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
        Ok(Response {
            status: 200,
            body: Body::Object(Arc::new(status)),
        })
    }

    /// Marks the object; who has to do with it (a kubelet, the owner of a finalizer) sees that and does its part.
    fn begin_deletion(
        &mut self,
        now: Time,
        table: Table,
        key: &Key,
        old: &Value,
        grace: u64,
    ) -> Option<Arc<crate::store::Snapshot>> {
        let begun = meta(old, "deletionTimestamp").is_some();
        let sooner = old["metadata"]["deletionGracePeriodSeconds"]
            .as_u64()
            .is_some_and(|had| grace < had);
        if begun && !sooner {
            return None;
        }
        let mut new = old.clone();
        let at = Time(now.0.saturating_add(grace.saturating_mul(1_000_000_000)));
        new["metadata"]["deletionTimestamp"] = rfc3339(at).into();
        new["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        if let Some(generation) = new["metadata"]["generation"].as_u64().filter(|_| !begun) {
            new["metadata"]["generation"] = (generation + 1).into();
        }
        self.commit(table, key.clone(), Some(new)).after.clone()
    }

    /// As the garbage collector does, of objects outside of namespaces: what a Node owned goes with it.
    fn collect_owned(&mut self, uid: &str) {
        let cluster_wide = (0..self.resources.len()).filter(|t| !self.resources[*t].namespaced);
        for table in cluster_wide.collect::<Vec<_>>() {
            let owned = self
                .store
                .table(table)
                .iter()
                .filter(|(_, s)| is_owned(&s.object, uid));
            let keys: Vec<Key> = owned.map(|(key, _)| key.clone()).collect();
            for key in keys {
                self.commit(table, key, None);
            }
        }
    }

    fn empty_namespace(&mut self, namespace: &str) {
        for table in 0..self.resources.len() {
            let inside = self
                .store
                .table(table)
                .keys()
                .filter(|k| k.namespace == namespace);
            let keys: Vec<Key> = inside.cloned().collect();
            for key in keys {
                self.commit(table, key, None);
            }
        }
    }

    pub(crate) fn delete_collection(
        &mut self,
        write: &Write<'_>,
        table: Table,
        namespace: String,
    ) -> Result<Response> {
        let scope = self.scope(write, table, namespace)?;
        let selected = self
            .store
            .table(table)
            .iter()
            .filter(|(key, s)| scope.selects_at(key, s));
        let keys: Vec<Key> = selected.map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.delete(write, table, key)?;
        }
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 200});
        Ok(Response {
            status: 200,
            body: Body::Object(Arc::new(status)),
        })
    }
}

fn is_owned(object: &Value, uid: &str) -> bool {
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
}

/// `DeleteOptions`, from the body or the query.
fn options(request: &Request) -> Result<Value> {
    let mut options = if request.body.is_empty() {
        json!({})
    } else {
        body(request)?
    };
    if !options.is_object() {
        return Err(Failure::bad_request("the body of a DELETE must be DeleteOptions"));
    }
    if let Some(grace) = number(request, "gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = grace.into();
    }
    Ok(options)
}

fn preconditions(resource: &Resource, object: &Value, options: &Value) -> Result<()> {
    let name = meta(object, "name").unwrap_or_default();
    let want = |field: &str| options["preconditions"][field].as_str();
    if let Some(want) = want("uid")
        && let Some(have) = meta(object, "uid").filter(|have| *have != want)
    {
        let why = format!(
            "the UID in the precondition ({want}) does not match the UID in record ({have}). The object might have been deleted and then recreated"
        );
        return Err(Failure::precondition(resource, name, &why));
    }
    if let Some(want) = want("resourceVersion")
        && let Some(have) = meta(object, "resourceVersion").filter(|have| *have != want)
    {
        let why = format!(
            "the ResourceVersion in the precondition ({want}) does not match the ResourceVersion in record ({have}). The object might have been modified"
        );
        return Err(Failure::precondition(resource, name, &why));
    }
    Ok(())
}

/// Seconds that a pod is given; only a pod that a kubelet runs is given any.
fn grace(resource: &Resource, object: &Value, options: &Value) -> u64 {
    let runs = object["spec"]["nodeName"].as_str().is_some_and(|n| !n.is_empty());
    let finished = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !resource.is("pods") || !runs || finished {
        return 0;
    }
    let asked = options["gracePeriodSeconds"].as_u64();
    asked.unwrap_or_else(|| {
        object["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap_or(30)
    })
}
