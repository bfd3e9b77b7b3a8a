//! Manifests as users write them.

use crate::request::{Request, Time};
use crate::server::ApiServer;
use serde_json::Value;

/// Why a manifest was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("document {document} of the manifest: {message}")]
pub struct ManifestError {
    /// Which, from 1.
    pub document: usize,
    /// What was tried and what came of it.
    pub message: String,
}

/// Longest manifest.
const MANIFEST_MAX: usize = 16 << 20;

impl ApiServer {
    /// Creates or changes every object of a text with YAML or JSON documents, in order, as
    /// `kubectl apply --server-side` does; an object without a namespace goes to `default`. Stops at the first that
    /// fails; those before it stay. Returns how many objects there were.
    ///
    /// # Errors
    /// Says which document it was, and why.
    pub fn load_yaml(&mut self, now: Time, text: &str) -> Result<usize, ManifestError> {
        let mut count = 0;
        for (at, document) in documents(text).into_iter().enumerate() {
            let failed = |message: String| ManifestError {
                document: at + 1,
                message,
            };
            if text.len() > MANIFEST_MAX {
                return Err(failed(format!(
                    "the manifest is longer than {MANIFEST_MAX} bytes; split it"
                )));
            }
            let value: Value =
                serde_saphyr::from_str(document).map_err(|e| failed(format!("is not YAML: {e}")))?;
            for object in objects(value) {
                self.load(now, &object).map_err(failed)?;
                count += 1;
            }
        }
        Ok(count)
    }

    fn load(&mut self, now: Time, object: &Value) -> Result<(), String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (name, namespace) = (
            text(&object["metadata"]["name"]),
            text(&object["metadata"]["namespace"]),
        );
        let known = self
            .resources()
            .iter()
            .find(|r| r.kind == kind && r.api_version() == version);
        let Some(resource) = known else {
            return Err(format!(
                "{version:?} {kind:?} is not a kind that this server knows; register it first"
            ));
        };
        let namespace = if namespace.is_empty() {
            "default".into()
        } else {
            namespace
        };
        let collection = resource.collection(&namespace);
        let path = format!("{collection}/{name}");
        let exists = !name.is_empty()
            && self
                .handle(now, Request::get(path.as_str()))
                .response()
                .is_success();
        let request = if exists {
            Request::apply(path, object, "kubectl", true)
        } else {
            Request::create(collection, object).with("fieldManager", "kubectl")
        };
        let response = self.handle(now, request).response();
        if response.is_success() {
            return Ok(());
        }
        let status = response.body.to_value();
        Err(format!(
            "{kind} {name:?}: {}",
            status["message"].as_str().unwrap_or("refused")
        ))
    }
}

/// The documents of a text: a line that begins with `---` parts them, those that hold nothing but comments are none.
fn documents(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            documents.push(&text[start..at]);
            start = at + 3;
        }
        at += line.len();
    }
    documents.push(&text[start..]);
    let says_something = |d: &&str| {
        d.lines()
            .any(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))
    };
    documents.into_iter().filter(says_something).collect()
}

/// The objects of a document: the items of a `List`, or itself.
fn objects(value: Value) -> Vec<Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
            match list.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}
