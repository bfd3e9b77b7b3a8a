//! Label and field selectors.

use crate::resource::Resource;
use crate::status::{Failure, Result};
use serde_json::Value;

/// What a list or a watch selects. The default selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    fields: Vec<(String, bool, String)>,
    labels: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Exists(String),
    Absent(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl Selector {
    pub(crate) fn parse(resource: &Resource, fields: &str, labels: &str) -> Result<Self> {
        Ok(Self {
            fields: parse_fields(resource, fields)?,
            labels: parse_labels(labels)?,
        })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let field =
            |(path, equal, want): &(String, bool, String)| (field_text(object, path) == *want) == *equal;
        self.fields.iter().all(field) && self.labels.iter().all(|r| r.matches(object))
    }
}

impl Requirement {
    fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object.get("metadata")?.get("labels")?.get(key)?.as_str();
        match self {
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::In(key, values) => label(key).is_some_and(|l| values.iter().any(|v| v == l)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|l| values.iter().all(|v| v != l)),
        }
    }
}

/// A field as field selectors see it: absent counts as empty.
fn field_text(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |at, part| at.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        _ if matches!(path, "spec.hostNetwork" | "spec.unschedulable") => "false".into(),
        _ => String::new(),
    }
}

fn parse_fields(resource: &Resource, text: &str) -> Result<Vec<(String, bool, String)>> {
    let mut fields = Vec::new();
    for term in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
        let (path, equal, value) = if let Some((path, value)) = term.split_once("!=") {
            (path, false, value)
        } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (path, true, value)
        } else {
            let message = format!("invalid selector: '{text}'; can't understand '{term}'");
            return Err(Failure::bad_request(message));
        };
        if !resource.selects(path) {
            return Err(Failure::bad_request(format!("field label not supported: {path}")));
        }
        fields.push((path.into(), equal, value.into()));
    }
    Ok(fields)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>> {
    split_terms(text)
        .into_iter()
        .filter(|t| !t.is_empty())
        .map(parse_requirement)
        .collect()
}

/// Splits at commas that are not within parentheses.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let (mut start, mut depth) = (0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                terms.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(text[start..].trim());
    terms
}

fn parse_requirement(term: &str) -> Result<Requirement> {
    let bad = || Failure::bad_request(format!("unable to parse requirement: {term:?}"));
    let key = |text: &str| {
        let text = text.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!text.is_empty() && text.chars().all(plain)).then(|| text.to_owned())
    };
    let value = |text: &str| {
        let text = text.trim();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        text.chars().all(plain).then(|| text.to_owned())
    };
    if let Some(absent) = term.strip_prefix('!') {
        return Ok(Requirement::Absent(key(absent).ok_or_else(bad)?));
    }
    if let Some((left, list)) = term.strip_suffix(')').and_then(|t| t.split_once('(')) {
        let values: Option<Vec<String>> = list.split(',').map(value).collect();
        let values = values.ok_or_else(bad)?;
        let mut words = left.split_whitespace();
        let name = words.next().and_then(key).ok_or_else(bad)?;
        return match (words.next(), words.next()) {
            (Some("in"), None) => Ok(Requirement::In(name, values)),
            (Some("notin"), None) => Ok(Requirement::NotIn(name, values)),
            _ => Err(bad()),
        };
    }
    let (split, equal) = if let Some(split) = term.split_once("!=") {
        (Some(split), false)
    } else {
        (term.split_once("==").or_else(|| term.split_once('=')), true)
    };
    let Some((left, right)) = split else {
        return Ok(Requirement::Exists(key(term).ok_or_else(bad)?));
    };
    let (name, values) = (key(left).ok_or_else(bad)?, vec![value(right).ok_or_else(bad)?]);
    Ok(if equal {
        Requirement::In(name, values)
    } else {
        Requirement::NotIn(name, values)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn selects(fields: &str, labels: &str, object: &Value) -> bool {
        let pods = Resource::new("", "v1", "pods", "Pod").namespaced();
        Selector::parse(&pods, fields, labels).unwrap().matches(object)
    }

    #[test]
    fn fields_and_labels_select() {
        let pod = json!({"metadata": {"name": "a", "namespace": "b", "labels": {"app": "web", "tier": "1"}},
                         "spec": {"nodeName": "n1"}});
        for (fields, labels, want) in [
            ("", "", true),
            ("metadata.name=a,spec.nodeName==n1", "", true),
            ("spec.nodeName!=n1", "", false),
            ("status.phase=", "", true),
            ("spec.hostNetwork=false", "", true),
            ("", "app=web,tier in (1, 2)", true),
            ("", "app notin (web)", false),
            ("", "other notin (web),!other,app", true),
            ("", "app!=web", false),
        ] {
            assert_eq!(selects(fields, labels, &pod), want, "{fields:?} {labels:?}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        let nodes = Resource::new("", "v1", "nodes", "Node");
        for (fields, labels) in [
            ("spec.nodeName=a", ""),
            ("metadata.name", ""),
            ("", "a==="),
            ("", "a in b"),
            ("", "=x"),
        ] {
            assert!(
                Selector::parse(&nodes, fields, labels).is_err(),
                "{fields:?} {labels:?}"
            );
        }
    }
}
