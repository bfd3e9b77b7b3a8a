//! `metav1.Status`: how the API says that something did not work, with the reasons and messages of kube-apiserver.

use crate::object::drop_field;
use crate::request::{Body, Response};
use crate::resource::Resource;
use serde_json::{Value, json};
use std::sync::Arc;

/// A failure, on its way to become a [`Response`]. Boxed: it travels in every `Result`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Failure(Box<Inner>);

#[derive(Clone, Debug, PartialEq)]
struct Inner {
    code: u16,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// One reason why an object is invalid.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cause {
    pub(crate) reason: &'static str,
    pub(crate) field: String,
    pub(crate) message: String,
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: String, details: Option<Value>) -> Self {
        Failure(Box::new(Inner {
            code,
            reason,
            message,
            details,
        }))
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> u16 {
        self.0.code
    }

    #[cfg(test)]
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    pub(crate) fn no_such_resource() -> Self {
        let message = "the server could not find the requested resource".into();
        Self::new(404, "NotFound", message, Some(json!({})))
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::new(404, "NotFound", message, Some(resource.details(name)))
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message, Some(resource.details(name)))
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            resource.qualified()
        );
        Self::new(409, "Conflict", message, Some(resource.details(name)))
    }

    /// A precondition of a deletion does not hold; here messages name the kind and not the resource.
    pub(crate) fn precondition(resource: &Resource, name: &str, why: &str) -> Self {
        let kind = &resource.kind;
        let message = format!("Operation cannot be fulfilled on {kind} \"{name}\": {why}");
        Self::new(
            409,
            "Conflict",
            message,
            Some(json!({"name": name, "kind": kind})),
        )
    }

    pub(crate) fn modified(resource: &Resource, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// Fields that other managers own: one (manager as text, field) each.
    pub(crate) fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, field)| {
                json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": field})
            })
            .collect();
        let message = match conflicts {
            [(manager, field)] => format!("Apply failed with 1 conflict: conflict with {manager}: {field}"),
            many => format!("Apply failed with {} conflicts: {}", many.len(), by_manager(many)),
        };
        Self::new(409, "Conflict", message, Some(json!({ "causes": causes })))
    }

    pub(crate) fn invalid(kind: &str, name: &str, causes: &[Cause]) -> Self {
        let lines: Vec<String> = causes
            .iter()
            .map(|c| format!("{}: {}", c.field, c.message))
            .collect();
        let text = match lines.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = causes
            .iter()
            .map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field}))
            .collect();
        let mut details = json!({"name": name, "kind": kind, "causes": causes});
        if name.is_empty() {
            drop_field(&mut details, "name");
        }
        Self::new(
            422,
            "Invalid",
            format!("{kind} \"{name}\" is invalid: {text}"),
            Some(details),
        )
    }

    /// Options of a request that contradict one another or lack something.
    pub(crate) fn invalid_options(kind: &str, cause: Cause) -> Self {
        let mut failure = Self::invalid(&format!("{kind}.meta.k8s.io"), "", &[cause]);
        if let Some(details) = &mut failure.0.details {
            *details = json!({"group": "meta.k8s.io", "kind": kind, "causes": details["causes"]});
        }
        failure
    }

    pub(crate) fn rejected_patch() -> Self {
        let message = "the server rejected our request due to an error in our request".into();
        Self::new(422, "Invalid", message, Some(json!({})))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message.into(), None)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource".into();
        Self::new(405, "MethodNotAllowed", message, Some(json!({})))
    }

    pub(crate) fn not_acceptable() -> Self {
        let message = "406: Not Acceptable\n\nAvailable representations: application/json".into();
        Self::new(406, "NotAcceptable", message, Some(json!({})))
    }

    /// The client asked for a list of metadata where there is one object, or the other way round.
    pub(crate) fn wrong_form(message: String) -> Self {
        Self::new(406, "NotAcceptable", message, None)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        let message = "415: Unsupported Media Type".into();
        Self::new(415, "UnsupportedMediaType", message, Some(json!({})))
    }

    pub(crate) fn too_large() -> Self {
        let message = "Request entity too large: limit is 3145728".into();
        Self::new(413, "RequestEntityTooLarge", message, Some(json!({})))
    }

    pub(crate) fn too_many_watches() -> Self {
        let message = "too many watches, please try again later".into();
        Self::new(
            429,
            "TooManyRequests",
            message,
            Some(json!({"retryAfterSeconds": 1})),
        )
    }

    /// The history does not reach back to this resource version.
    pub(crate) fn expired(message: String) -> Self {
        Self::new(410, "Expired", message, None)
    }

    pub(crate) fn version_too_large(asked: u64, current: u64) -> Self {
        let message = format!("Timeout: Too large resource version: {asked}, current: {current}");
        let causes = json!([{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]);
        let details = json!({"causes": causes, "retryAfterSeconds": 1});
        Self::new(504, "Timeout", message, Some(details))
    }

    /// What kube-apiserver answers where it did not foresee an error: 500 and no reason.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message.into(), None)
    }

    pub(crate) fn to_value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.0.message,
        });
        if !self.0.reason.is_empty() {
            status["reason"] = self.0.reason.into();
        }
        if let Some(details) = &self.0.details {
            status["details"] = details.clone();
        }
        status["code"] = self.0.code.into();
        status
    }

    pub(crate) fn into_response(self) -> Response {
        Response {
            status: self.0.code,
            body: Body::Object(Arc::new(self.to_value())),
        }
    }
}

/// Conflicts as lines, under a heading for each manager.
fn by_manager(conflicts: &[(String, String)]) -> String {
    let mut lines = Vec::new();
    let mut last = None;
    for (manager, field) in conflicts {
        if last.replace(manager) != Some(manager) {
            lines.push(format!("conflicts with {manager}:"));
        }
        lines.push(format!("- {field}"));
    }
    lines.join("\n")
}

impl Cause {
    pub(crate) fn invalid(field: &str, value: &Value, why: &str) -> Self {
        Cause {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }

    pub(crate) fn required(field: &str, why: &str) -> Self {
        let message = if why.is_empty() {
            "Required value".into()
        } else {
            format!("Required value: {why}")
        };
        Cause {
            reason: "FieldValueRequired",
            field: field.into(),
            message,
        }
    }

    pub(crate) fn forbidden(field: &str, why: &str) -> Self {
        Cause {
            reason: "FieldValueForbidden",
            field: field.into(),
            message: format!("Forbidden: {why}"),
        }
    }

    pub(crate) fn too_long(field: &str, max: usize) -> Self {
        Cause {
            reason: "FieldValueTooLong",
            field: field.into(),
            message: format!("Too long: may not be more than {max} bytes"),
        }
    }
}
