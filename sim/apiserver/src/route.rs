//! From a path to what it names.

use crate::request::Request;
use crate::resource::Resource;
use crate::status::{Failure, Result};
use crate::store::Table;
use crate::watch::Form;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// All objects of a kind, in one namespace or (empty) in all.
    Collection { table: Table, namespace: String },
    /// One object, or a subresource of it.
    Object {
        table: Table,
        namespace: String,
        name: String,
        subresource: Option<String>,
    },
    /// Anything else: discovery, health.
    Other,
}

pub(crate) fn target(resources: &[Resource], path: &str) -> Result<Target> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Target::Other),
    };
    let table = |plural: &str| {
        let is = |r: &Resource| r.group == group && r.version == version && r.plural == plural;
        resources
            .iter()
            .position(is)
            .ok_or_else(Failure::no_such_resource)
    };
    let object = |plural: &str, namespace: &str, name: &str, subresource: Option<&&str>| {
        let table = table(plural)?;
        if resources[table].namespaced == namespace.is_empty() {
            return Err(Failure::no_such_resource());
        }
        Ok(Target::Object {
            table,
            namespace: namespace.into(),
            name: name.into(),
            subresource: subresource.map(|s| (*s).to_owned()),
        })
    };
    match rest {
        // `namespaces/x/status` is a subresource; `namespaces/x/pods` is a collection.
        ["namespaces", name] => object("namespaces", "", name, None),
        ["namespaces", name, "status"] if group.is_empty() => object("namespaces", "", name, Some(&"status")),
        ["namespaces", namespace, plural] => {
            let table = table(plural)?;
            if !resources[table].namespaced {
                return Err(Failure::no_such_resource());
            }
            let namespace = (*namespace).to_owned();
            Ok(Target::Collection { table, namespace })
        }
        ["namespaces", namespace, plural, name] => object(plural, namespace, name, None),
        ["namespaces", namespace, plural, name, sub] => object(plural, namespace, name, Some(sub)),
        [plural] => {
            let table = table(plural)?;
            let namespace = String::new();
            Ok(Target::Collection { table, namespace })
        }
        [plural, name] => object(plural, "", name, None),
        [plural, name, sub] => object(plural, "", name, Some(sub)),
        _ => Err(Failure::no_such_resource()),
    }
}

/// Which of the forms that a client accepts is given: the first that the server has. `list` where the answer is a list.
pub(crate) fn form(request: &Request, list: bool, kind: &str) -> Result<Form> {
    if request.accept.is_empty() {
        return Ok(Form::Full);
    }
    let acceptable = |clause: &str| {
        let mut parts = clause.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
            return None;
        }
        match parts.find_map(|p| p.strip_prefix("as=")) {
            None => Some((Form::Full, None)),
            Some("PartialObjectMetadata") => Some((Form::Partial, Some(false))),
            Some("PartialObjectMetadataList") => Some((Form::Partial, Some(true))),
            Some(_) => None,
        }
    };
    let found = request.accept.split(',').find_map(acceptable);
    match found.ok_or_else(Failure::not_acceptable)? {
        (_, Some(true)) if !list => Err(Failure::wrong_form(format!(
            "you requested PartialObjectMetadataList, but the requested object is not a list (*core.{kind})"
        ))),
        (_, Some(false)) if list => Err(Failure::wrong_form(format!(
            "you requested PartialObjectMetadata, but the requested object is a list (*core.{kind}List)"
        ))),
        (form, _) => Ok(form),
    }
}

/// Who writes, as far as `metadata.managedFields` is concerned.
pub(crate) fn field_manager(request: &Request) -> String {
    if let Some(given) = request.query("fieldManager").filter(|m| !m.is_empty()) {
        return given.into();
    }
    let agent = request.user_agent.split('/').next().unwrap_or_default();
    if agent.is_empty() {
        "unknown".into()
    } else {
        agent.into()
    }
}

/// A query parameter that is true or false.
pub(crate) fn flag(request: &Request, key: &str) -> bool {
    matches!(request.query(key), Some("true" | "1" | ""))
}

/// A query parameter that is a number.
pub(crate) fn number(request: &Request, key: &str) -> Result<Option<u64>> {
    let Some(text) = request.query(key).filter(|t| !t.is_empty()) else {
        return Ok(None);
    };
    let parsed = text.parse().map(Some);
    parsed.map_err(|_| Failure::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}
