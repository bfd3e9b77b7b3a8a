//! Server-side apply.

use crate::managed::{self, Manager};
use crate::object::{Part, meta, of_kind};
use crate::request::Response;
use crate::resource::Resource;
use crate::route::flag;
use crate::server::{ApiServer, Write};
use crate::status::{Cause, Failure, Result};
use crate::store::{Key, Table};
use crate::write::Writer;
use serde_json::Value;

impl ApiServer {
    pub(crate) fn apply(
        &mut self,
        write: &Write<'_>,
        table: Table,
        key: &Key,
        part: Part,
        patch: Value,
    ) -> Result<Response> {
        let resource = self.resources[table].clone();
        let manager = write.request.query("fieldManager").filter(|m| !m.is_empty());
        let manager = manager.ok_or_else(|| {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            Failure::invalid_options("PatchOptions", cause)
        })?;
        let manager = Manager::apply(&resource, part, manager);
        let patch = applied(&resource, patch, key)?;
        let force = flag(write.request, "force");
        if self.store.get(table, key).is_none() {
            return self.apply_new(write, table, key, part, &patch, &manager);
        }
        let now = write.now;
        let stored = self.modify(now, table, key, part, Writer::Apply, |old| {
            let mut merged = managed::apply(old, &patch, &manager, force, now)?;
            for field in ["uid", "resourceVersion"] {
                if let Some(given) = meta(&patch, field) {
                    merged["metadata"][field] = given.into();
                }
            }
            Ok(merged)
        })?;
        Ok(write.respond(200, &stored))
    }

    /// What is applied and is not there is created, unless a UID says which object was meant.
    fn apply_new(
        &mut self,
        write: &Write<'_>,
        table: Table,
        key: &Key,
        part: Part,
        patch: &Value,
        manager: &Manager,
    ) -> Result<Response> {
        let resource = self.resources[table].clone();
        if part == Part::Status {
            return Err(Failure::not_found(&resource, &key.name));
        }
        if let Some(uid) = meta(patch, "uid") {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Failure::conflict(&resource, &key.name, &why));
        }
        let mut object = patch.clone();
        object["metadata"]["name"] = key.name.as_str().into();
        let now = write.now;
        let made = self.insert(now, table, &key.namespace, object, |_, new| {
            managed::claim(new, patch, manager, now);
        })?;
        Ok(write.respond(201, &made))
    }
}

/// Checks what server-side apply asks of a configuration.
fn applied(resource: &Resource, patch: Value, key: &Key) -> Result<Value> {
    for field in ["apiVersion", "kind"] {
        if patch[field].as_str().is_none_or(str::is_empty) {
            let message = format!(
                "invalid object type: Object '{}' is missing in the configuration",
                field
            );
            return Err(Failure::bad_request(message));
        }
    }
    let patch = of_kind(resource, patch)?;
    if patch["metadata"]
        .get("managedFields")
        .is_some_and(|m| !m.is_null())
    {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    if let Some(name) = meta(&patch, "name").filter(|n| *n != key.name) {
        let message = format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            key.name
        );
        return Err(Failure::bad_request(message));
    }
    Ok(patch)
}
