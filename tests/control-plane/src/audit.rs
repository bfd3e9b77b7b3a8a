//! What the API server was asked, from its audit log.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{self, BufRead};
use std::path::Path;

const LOG: &str = "audit.log";
const POLICY: &str = "audit-policy.json";

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who asked.
    pub user: String,
    /// `get`, `list`, `watch`, `patch` and so on.
    pub verb: String,
    /// Path and query.
    pub uri: String,
    /// HTTP status of the answer; of a watch, of its beginning.
    pub code: u64,
}

impl Request {
    /// Whether it asks for all objects that there are: a list, or a watch that begins with one.
    #[must_use]
    pub fn is_list(&self) -> bool {
        self.verb == "list" || (self.verb == "watch" && self.uri.contains("sendInitialEvents=true"))
    }

    /// Whether it changes anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        )
    }
}

/// Who asked what, no more: bodies are not logged.
pub(crate) fn policy(folder: &Path) -> io::Result<()> {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    });
    std::fs::write(folder.join(POLICY), policy.to_string())
}

pub(crate) fn arguments(folder: &Path) -> [String; 2] {
    let at = |name: &str| folder.join(name).display().to_string();
    [
        format!("--audit-policy-file={}", at(POLICY)),
        format!("--audit-log-path={}", at(LOG)),
    ]
}

/// Reads the audit log of the control plane whose folder this is.
pub(crate) fn requests(folder: &Path) -> io::Result<Vec<Request>> {
    let log = match std::fs::File::open(folder.join(LOG)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        log => io::BufReader::new(log?),
    };
    let mut seen = BTreeSet::new();
    let mut requests = Vec::new();
    for line in log.lines() {
        // The last line may be under way.
        let Ok(event) = serde_json::from_str::<Value>(&line?) else {
            continue;
        };
        // A watch is told when it begins and when it ends.
        if seen.insert(event["auditID"].to_string()) {
            requests.push(request(&event));
        }
    }
    Ok(requests)
}

fn request(event: &Value) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Request {
        user: text(&event["user"]["username"]),
        verb: text(&event["verb"]),
        uri: text(&event["requestURI"]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
    }
}
