//! The CNI plugin of meshd: a thin client of the daemon's local socket.
//!
//! ```text
//! environment  CNI_* variables           -> Invocation
//! args         CNI_ARGS                  -> the pod, and what else is asked for
//! config       network configuration     -> Config
//! previous     prevResult                -> Previous
//! client       Call -> daemon -> Response, in bounded time
//! note         DEL without a daemon: a note for its next start
//! link         DEL without a daemon: the interface goes at once
//! result       Added, or an error        -> JSON
//! plugin       all of them in order
//! ```
//!
//! What parses and renders is pure. What waits for the runtime or the daemon does so no longer than its deadline.

pub mod args;
pub mod client;
pub mod config;
pub mod deadline;
pub mod environment;
pub mod link;
pub mod note;
pub mod plugin;
pub mod previous;
pub mod result;
pub mod version;

use ipnetwork::IpNetwork;
use meshd_model::cni::CniError;
use std::net::IpAddr;

/// Builds an error: one of [`meshd_model::cni::code`], what happened, and what to do or what exactly was found.
fn error(code: u32, msg: impl Into<String>, details: impl Into<String>) -> CniError {
    CniError {
        code,
        msg: msg.into(),
        details: details.into(),
    }
}

/// An address, with or without the length of a prefix, which says nothing of a pod's own.
fn address(text: &str) -> Result<IpAddr, String> {
    let network = text.parse::<IpNetwork>();
    network
        .map(|network| network.ip())
        .map_err(|_| "no IP address".to_owned())
}

/// A parser's reason, which may hold all of what it could not parse, cut short.
fn reason(text: &impl ToString) -> String {
    const SHOWN: usize = 300;
    text.to_string().chars().take(SHOWN).collect()
}

/// A foreign text for a message: quoted, escaped, cut short.
fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let cut: String = text.chars().take(SHOWN).collect();
    let more = if cut.len() < text.len() { ".." } else { "" };
    format!("{cut:?}{more}")
}
