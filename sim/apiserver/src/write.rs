//! Create, update, patch.

use crate::managed::{self, Manager};
use crate::object::{Part, meta, of_kind, prepare_create, prepare_update};
use crate::patch::{PatchKind, patched};
use crate::request::{Method, Request, Response, Time};
use crate::server::{ApiServer, Write};
use crate::status::{Cause, Failure, Result};
use crate::store::{Change, Key, Snapshot, Table};
use crate::{list, node_ipam};
use serde_json::{Value, json};
use std::sync::Arc;

impl ApiServer {
    pub(crate) fn create(&mut self, write: &Write<'_>, table: Table, namespace: &str) -> Result<Response> {
        let resource = self.resources[table].clone();
        if resource.namespaced == namespace.is_empty() {
            return Err(Failure::method_not_allowed());
        }
        let object = of_kind(&resource, body(write.request)?)?;
        let made = self.insert(write.now, table, namespace, object, |old, new| {
            let manager = Manager::update(&resource, Part::Main, &write.manager());
            managed::record(old, new, &manager, write.now);
        })?;
        Ok(write.respond(201, &made))
    }

    /// Stores a new object; `own` says who owns its fields.
    pub(crate) fn insert(
        &mut self,
        now: Time,
        table: Table,
        namespace: &str,
        mut object: Value,
        own: impl FnOnce(&Value, &mut Value),
    ) -> Result<Arc<Snapshot>> {
        let resource = self.resources[table].clone();
        if resource.namespaced {
            if meta(&object, "namespace").is_some_and(|n| n != namespace) {
                let message =
                    "the namespace of the provided object does not match the namespace sent on the request";
                return Err(Failure::bad_request(message));
            }
            self.need_namespace(namespace)?;
            object["metadata"]["namespace"] = namespace.into();
        } else {
            crate::object::drop_field(&mut object["metadata"], "namespace");
        }
        prepare_create(&resource, &mut object, &mut self.uids, now)?;
        let key = list::key_of(&object);
        if self.store.get(table, &key).is_some() {
            return Err(Failure::already_exists(&resource, &key.name));
        }
        // What the server makes of the status is nobody's.
        let unowned = match object.get("status") {
            Some(status) if resource.status => json!({"status": status}),
            _ => json!({}),
        };
        own(&unowned, &mut object);
        let change = self.commit(table, key.clone(), Some(object));
        if resource.is("nodes") {
            self.give_pod_cidrs(now, table, &key);
        }
        change
            .after
            .clone()
            .ok_or_else(|| Failure::not_found(&resource, &key.name))
    }

    fn need_namespace(&self, name: &str) -> Result<()> {
        let Some(table) = self.resources.iter().position(|r| r.is("namespaces")) else {
            return Ok(());
        };
        let key = Key {
            namespace: String::new(),
            name: name.into(),
        };
        match self.store.get(table, &key) {
            Some(_) => Ok(()),
            None => Err(Failure::not_found(&self.resources[table], name)),
        }
    }

    /// As the controller manager does, in a change of its own.
    fn give_pod_cidrs(&mut self, now: Time, table: Table, key: &Key) {
        let Some(node) = self.store.get(table, key).cloned() else {
            return;
        };
        let Some(cidrs) = self.ipam.as_mut().and_then(|i| i.allocate(&node.object)) else {
            return;
        };
        let manager = Manager::update(&self.resources[table], Part::Main, "kube-controller-manager");
        let given = self.modify(now, table, key, Part::Main, Writer::Update(manager), |node| {
            patched(PatchKind::Merge, node, node_ipam::patch(&cidrs))
        });
        debug_assert!(given.is_ok(), "{given:?}");
    }

    /// Stores or removes an object and tells everyone who follows it.
    pub(crate) fn commit(&mut self, table: Table, key: Key, object: Option<Value>) -> Arc<Change> {
        let change = self.store.commit(table, key, object);
        if let Some(ipam) = self.ipam.as_mut().filter(|_| self.resources[table].is("nodes")) {
            change.before.iter().for_each(|b| ipam.mark(&b.object, false));
            change.after.iter().for_each(|a| ipam.mark(&a.object, true));
        }
        self.watches.publish(&change);
        change
    }

    pub(crate) fn replace(
        &mut self,
        write: &Write<'_>,
        table: Table,
        key: &Key,
        part: Part,
    ) -> Result<Response> {
        let resource = self.resources[table].clone();
        let object = of_kind(&resource, body(write.request)?)?;
        let manager = Manager::update(&resource, part, &write.manager());
        let stored = self.modify(write.now, table, key, part, Writer::Update(manager), |old| {
            let was = meta(old, "uid").unwrap_or_default();
            if let Some(given) = meta(&object, "uid").filter(|g| *g != was) {
                let why =
                    format!("Precondition failed: UID in precondition: {given}, UID in object meta: {was}");
                return Err(Failure::conflict(&resource, &key.name, &why));
            }
            Ok(object.clone())
        })?;
        Ok(write.respond(200, &stored))
    }

    pub(crate) fn patch(
        &mut self,
        write: &Write<'_>,
        table: Table,
        key: &Key,
        part: Part,
    ) -> Result<Response> {
        let resource = self.resources[table].clone();
        let kind = PatchKind::of(&write.request.content_type)?;
        let patch = body(write.request)?;
        if kind == PatchKind::Apply {
            return self.apply(write, table, key, part, patch);
        }
        let manager = Manager::update(&resource, part, &write.manager());
        let stored = self.modify(write.now, table, key, part, Writer::Update(manager), |old| {
            patched(kind, old, patch)
        })?;
        Ok(write.respond(200, &stored))
    }

    /// Changes an object by `make`, which is given it as it is. A change that changes nothing is none.
    pub(crate) fn modify(
        &mut self,
        now: Time,
        table: Table,
        key: &Key,
        part: Part,
        writer: Writer,
        make: impl FnOnce(&Value) -> Result<Value>,
    ) -> Result<Arc<Snapshot>> {
        let resource = self.resources[table].clone();
        let old = self.store.get(table, key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(&resource, &key.name))?;
        let mut new = of_kind(&resource, make(&old.object)?)?;
        if let Some(name) = meta(&new, "name").filter(|n| *n != key.name) {
            let message = format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                key.name
            );
            return Err(Failure::bad_request(message));
        }
        if meta(&new, "resourceVersion").is_some_and(|v| v != old.revision.to_string()) {
            return Err(Failure::modified(&resource, &key.name));
        }
        if let Writer::Update(_) = writer {
            match old.object["metadata"].get("managedFields") {
                Some(fields) => new["metadata"]["managedFields"] = fields.clone(),
                None => crate::object::drop_field(&mut new["metadata"], "managedFields"),
            }
        }
        prepare_update(&resource, part, &old.object, &mut new)?;
        if new == *old.object {
            return Ok(old);
        }
        if let Writer::Update(manager) = &writer {
            managed::record(&old.object, &mut new, manager, now);
        }
        if is_finished(&new) {
            let change = self.commit(table, key.clone(), None);
            return Ok(change.gone().cloned().unwrap_or(old));
        }
        let change = self.commit(table, key.clone(), Some(new));
        Ok(change.after.clone().unwrap_or(old))
    }

    /// `pods/binding`: the scheduler's way to say where a pod runs.
    pub(crate) fn bind(&mut self, write: &Write<'_>, table: Table, key: &Key) -> Result<Response> {
        if write.request.method != Method::Post {
            return Err(Failure::method_not_allowed());
        }
        let binding = body(write.request)?;
        let resource = self.resources[table].clone();
        let old = self.store.get(table, key).cloned();
        let old = old.ok_or_else(|| Failure::not_found(&resource, &key.name))?;
        let Some(node) = binding["target"]["name"].as_str().filter(|n| !n.is_empty()) else {
            let cause = Cause::required("target.name", "");
            return Err(Failure::invalid("Binding", &key.name, &[cause]));
        };
        if let Some(bound) = old.object["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
            let why = format!("pod {} is already assigned to node {bound:?}", key.name);
            return Err(Failure::conflict(&resource, &key.name, &why));
        }
        let mut new = Value::clone(&old.object);
        new["spec"]["nodeName"] = node.into();
        self.commit(table, key.clone(), Some(new));
        let status =
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(Response {
            status: 201,
            body: crate::request::Body::Object(Arc::new(status)),
        })
    }
}

/// Who changes an object, as far as the ownership of its fields is concerned.
pub(crate) enum Writer {
    /// Ownership is worked out from the difference.
    Update(Manager),
    /// Server-side apply has worked it out already.
    Apply,
}

/// Whether an object was only waiting for its last finalizer to go.
fn is_finished(object: &Value) -> bool {
    let metadata = &object["metadata"];
    meta(object, "deletionTimestamp").is_some()
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        && metadata["deletionGracePeriodSeconds"].as_u64().unwrap_or(0) == 0
}

/// A body, as JSON or as YAML.
pub(crate) fn body(request: &Request) -> Result<Value> {
    let media = request.content_type.split(';').next().unwrap_or_default().trim();
    if media == "application/vnd.kubernetes.protobuf" {
        return Err(Failure::unsupported_media_type());
    }
    let json = match serde_json::from_slice(&request.body) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    if media.ends_with("yaml") {
        let text = std::str::from_utf8(&request.body).map_err(|e| Failure::bad_request(e.to_string()))?;
        return serde_saphyr::from_str(text)
            .map_err(|e| Failure::bad_request(format!("error decoding YAML: {e}")));
    }
    let message =
        format!("the object provided is unrecognized: couldn't get version/kind; json parse error: {json}");
    Err(Failure::bad_request(message))
}
