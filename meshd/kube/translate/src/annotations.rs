//! What a node publishes of itself, as annotations of its Node.
//!
//! Parsing is strict. A text is taken only in the form in which [`encode`] writes it: numbers in decimal without a
//! sign or a leading zero, addresses and prefixes as the standard library writes them, prefixes with their host bits
//! clear, lists with one comma and nothing else between entries, no entry twice. So two texts that differ mean two
//! different things, and an annotation that somebody edited by hand into something that merely looks right is
//! reported, not guessed at. Annotations under our prefix that this version does not know are left alone: a later
//! version may write more.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use meshd_model::net::canonical;
use meshd_model::node::PROTOCOL_VERSION;
use meshd_model::{AnnotationProblem, NodeAnnotations, NodeName, NodeUid, Wall};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

/// Every annotation of ours begins with this.
pub const PREFIX: &str = "meshd.dev/";
/// The WireGuard public key, base64.
pub const PUBLIC_KEY: &str = "meshd.dev/public-key";
/// UDP port of the device, decimal, not 0.
pub const LISTEN_PORT: &str = "meshd.dev/listen-port";
/// Underlay addresses, comma-separated, at least one.
pub const ENDPOINTS: &str = "meshd.dev/endpoints";
/// The node's own addresses, comma-separated.
pub const NODE_ADDRESSES: &str = "meshd.dev/node-addresses";
/// MTU of the overlay in bytes, decimal, from [`MTU_MIN`].
pub const MTU: &str = "meshd.dev/mtu";
/// Pod CIDRs or blocks, comma-separated, canonical.
pub const POD_CIDRS: &str = "meshd.dev/pod-cidrs";
/// Protocol version, decimal.
pub const PROTOCOL: &str = "meshd.dev/protocol-version";
/// Every annotation that a node publishes.
pub const ALL: [&str; 7] = [
    PUBLIC_KEY,
    LISTEN_PORT,
    ENDPOINTS,
    NODE_ADDRESSES,
    MTU,
    POD_CIDRS,
    PROTOCOL,
];

/// Field manager of everything that meshd writes.
pub const FIELD_MANAGER: &str = "meshd";
/// Longest sum of our annotations' keys and values, in bytes.
pub const TOTAL_MAX: usize = 16 << 10;
/// Most entries of a list.
pub const ENTRIES_MAX: usize = 64;
/// Smallest MTU that carries IPv4 (RFC 791: 68); a node with IPv6 publishes 1280 or more (RFC 8200).
pub const MTU_MIN: u16 = 68;
/// How much of a value an error quotes, in characters.
const QUOTED_MAX: usize = 64;

/// What the annotations say. The first problem found is reported: the version first, because another version may
/// mean something else by everything else.
///
/// # Errors
/// Any annotation of ours that is missing, does not parse, or is too long; none at all; another version.
pub fn decode(annotations: &BTreeMap<String, String>) -> Result<NodeAnnotations, AnnotationProblem> {
    let ours = Ours::of(annotations)?;
    let protocol_version = ours.number(PROTOCOL, 0)?;
    if protocol_version != PROTOCOL_VERSION {
        return Err(AnnotationProblem::Version {
            found: protocol_version,
        });
    }
    let endpoints = ours.list(ENDPOINTS, "IP addresses", Ok)?;
    if endpoints.is_empty() {
        return Err(malformed(ENDPOINTS, "", "at least one IP address is needed"));
    }
    Ok(NodeAnnotations {
        public_key: ours.parsed(PUBLIC_KEY, "44 characters of base64 for 32 bytes, not all zero")?,
        listen_port: ours.number(LISTEN_PORT, 1)?,
        endpoints,
        node_addresses: ours.list(NODE_ADDRESSES, "IP addresses", Ok)?,
        mtu: ours.number(MTU, MTU_MIN)?,
        pod_cidrs: ours.list(POD_CIDRS, "prefixes with their host bits clear", |net| {
            if net == canonical(net) {
                Ok(net)
            } else {
                Err(format!(
                    "host bits are set; it should have been {}",
                    canonical(net)
                ))
            }
        })?,
        protocol_version,
    })
}

/// The annotations that say it.
#[must_use]
pub fn encode(node: &NodeAnnotations) -> BTreeMap<String, String> {
    [
        (PUBLIC_KEY, node.public_key.to_string()),
        (LISTEN_PORT, node.listen_port.to_string()),
        (ENDPOINTS, joined(&node.endpoints)),
        (NODE_ADDRESSES, joined(&node.node_addresses)),
        (MTU, node.mtu.to_string()),
        (POD_CIDRS, joined(&node.pod_cidrs)),
        (PROTOCOL, node.protocol_version.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The body of the server-side apply (`force=true`) that publishes. Its UID makes the API server refuse it where the
/// Node is gone or another one has its name.
#[must_use]
pub fn publish_body(name: &NodeName, uid: &NodeUid, node: &NodeAnnotations) -> serde_json::Value {
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "uid": uid, "annotations": encode(node) },
    })
}

/// Field manager of the condition: the annotations are applied under another name, and an apply gives up what its
/// manager had and does not name.
pub const CONDITION_MANAGER: &str = "meshd-network";

/// The body of the strategic merge patch of `nodes/status` that says that the node has its network.
#[must_use]
pub fn network_body(uid: &NodeUid, at: Wall) -> serde_json::Value {
    let seconds = i64::try_from(at.0 / 1_000_000_000).unwrap_or(i64::MAX);
    let stamp = k8s_openapi::jiff::Timestamp::from_second(seconds).map(Time).ok();
    serde_json::json!({
        "metadata": { "uid": uid },
        "status": { "conditions": [{
            "type": crate::object::NETWORK_UNAVAILABLE, "status": "False",
            "reason": "MeshdIsUp", "message": "meshd is ready to attach pods on this node",
            "lastTransitionTime": stamp, "lastHeartbeatTime": stamp,
        }] },
    })
}

fn joined<T: Display>(entries: &[T]) -> String {
    let texts: Vec<String> = entries.iter().map(T::to_string).collect();
    texts.join(",")
}

/// The annotations of ours, not too many.
struct Ours<'a>(&'a BTreeMap<String, String>);

impl<'a> Ours<'a> {
    fn of(annotations: &'a BTreeMap<String, String>) -> Result<Self, AnnotationProblem> {
        let mut ours = annotations
            .range(PREFIX.to_owned()..)
            .take_while(|(k, _)| k.starts_with(PREFIX))
            .peekable();
        if ours.peek().is_none() {
            return Err(AnnotationProblem::Absent);
        }
        let mut total = 0;
        for (key, value) in ours {
            total += key.len() + value.len();
            if total > TOTAL_MAX {
                let reason =
                    format!("the annotations under {PREFIX} are longer than {TOTAL_MAX} bytes together");
                return Err(malformed(key, value, &reason));
            }
        }
        Ok(Self(annotations))
    }

    fn text(&self, key: &str) -> Result<&'a str, AnnotationProblem> {
        let missing = || AnnotationProblem::Missing { key: key.into() };
        self.0.get(key).map(String::as_str).ok_or_else(missing)
    }

    /// A value whose text is the only one that means it.
    fn parsed<T: FromStr + Display>(&self, key: &str, want: &str) -> Result<T, AnnotationProblem> {
        let text = self.text(key)?;
        canonical_text(text).ok_or_else(|| malformed(key, text, &format!("it should have been {want}")))
    }

    fn number(&self, key: &str, least: u16) -> Result<u16, AnnotationProblem> {
        let want = format!("a decimal number from {least} to {}", u16::MAX);
        let number = self.parsed(key, &want)?;
        if number < least {
            return Err(malformed(
                key,
                self.text(key)?,
                &format!("it should have been {want}"),
            ));
        }
        Ok(number)
    }

    fn list<T>(
        &self,
        key: &str,
        want: &str,
        check: impl Fn(T) -> Result<T, String>,
    ) -> Result<Vec<T>, AnnotationProblem>
    where
        T: FromStr + Display + Copy + Ord,
    {
        let text = self.text(key)?;
        let bad = |entry: &str, reason: &str| malformed(key, entry, reason);
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let (mut entries, mut seen) = (Vec::new(), BTreeSet::new());
        for entry in text.split(',') {
            if entries.len() == ENTRIES_MAX {
                return Err(bad(text, &format!("it has more than {ENTRIES_MAX} entries")));
            }
            let wanted = || {
                bad(
                    entry,
                    &format!("its entries should have been {want}, separated by one comma"),
                )
            };
            let value: T = entry.parse().map_err(|_| wanted())?;
            let value = check(value).map_err(|reason| bad(entry, &reason))?;
            if value.to_string() != entry {
                return Err(wanted());
            }
            if !seen.insert(value) {
                return Err(bad(entry, "this entry is there twice"));
            }
            entries.push(value);
        }
        Ok(entries)
    }
}

/// Parses a text that is just what its value is written as.
fn canonical_text<T: FromStr + Display>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    (value.to_string() == text).then_some(value)
}

fn malformed(key: &str, value: &str, reason: &str) -> AnnotationProblem {
    AnnotationProblem::Malformed {
        key: quoted(key),
        value: quoted(value),
        reason: reason.into(),
    }
}

/// A text of another's making, cut short and with control characters escaped: it goes into logs and terminals.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for c in text.chars().take(QUOTED_MAX) {
        if is_plain(c) {
            quoted.push(c);
        } else {
            quoted.extend(c.escape_unicode());
        }
    }
    if text.chars().nth(QUOTED_MAX).is_some() {
        quoted.push('…');
    }
    quoted
}

/// Neither a control character nor one that reorders or hides text.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
