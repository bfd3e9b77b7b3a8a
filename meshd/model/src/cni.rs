//! What crosses the daemon's local socket: one JSON object on a line each way, at most [`MESSAGE_MAX`] bytes.

use crate::attachment::{AttachmentId, MacAddr};
use crate::pod::PodRef;
use crate::status::Status;
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Longest message, newline included. A cluster's status is the largest: about 400 bytes a peer.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Longest request; a request is read before anything is known of its sender.
pub const REQUEST_MAX: usize = 256 << 10;
/// Default path of the daemon's socket.
pub const SOCKET: &str = "/run/meshd/meshd.sock";

/// Most notes of deletions that wait for the daemon's start.
pub const NOTES_MAX: usize = 4096;
/// Longest note, in bytes.
pub const NOTE_MAX: usize = 1024;

/// The folder of the notes that the plugin leaves where it finds no daemon for a DEL: a file an attachment, of which it
/// holds the [`AttachmentId`] as JSON.
#[must_use]
pub fn notes_folder(socket: &Path) -> PathBuf {
    let mut folder = socket.as_os_str().to_owned();
    folder.push(".deleted");
    folder.into()
}

/// Name of an attachment's note in [`notes_folder`].
#[must_use]
pub fn note_name(id: &AttachmentId) -> String {
    id.host_ifname()
}

/// A request of the plugin or of `meshctl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// How long the caller will wait, in milliseconds; the daemon answers sooner.
    pub deadline_ms: u64,
    /// What is asked.
    pub call: Call,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// CNI ADD.
    Add(Add),
    /// CNI DEL.
    Del(AttachmentId),
    /// CNI CHECK.
    Check(Check),
    /// CNI GC.
    Gc(Gc),
    /// CNI STATUS: a short answer, as to [`Call::Ready`].
    CniStatus,
    /// `meshctl status`.
    Status,
    /// Whether ADD can succeed, for probes: a short answer, which looks at nothing but the daemon.
    Ready,
}

/// The parameters of ADD that the daemon needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Add {
    /// Container and interface.
    pub id: AttachmentId,
    /// `CNI_NETNS`
    pub netns: String,
    /// `K8S_POD_*` of `CNI_ARGS`.
    pub pod: Option<PodRef>,
    /// What else is asked for.
    #[serde(default)]
    pub wants: Wants,
    /// Drawn by the caller for this ADD, and the same where it sends it again because it was cut off from the daemon
    /// before an answer came: an attachment that this very ADD made is then its answer, and no error. 0 for none.
    #[serde(default)]
    pub token: u64,
    /// `name` of the network configuration: GC of one network leaves the attachments of others alone.
    #[serde(default)]
    pub network: String,
}

/// What the caller asks of an attachment beyond having one: the capabilities `ips` and `mac` of `runtimeConfig`, `IP=`
/// and `MAC=` of `CNI_ARGS`, `args.cni.ips` and `args.cni.mac`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wants {
    /// These addresses and no others, one of a family at most; a family that is not named gets one all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// MAC of the pod's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// The pod has a default route already, which `prevResult` names: it is left alone.
    #[serde(default)]
    pub secondary: bool,
}

/// The parameters of CHECK: what `prevResult` says of our interfaces. What it leaves out is not compared with it; the
/// lease and the kernel are compared all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Container and interface.
    pub id: AttachmentId,
    /// `CNI_NETNS`
    pub netns: String,
    /// Addresses that `prevResult` names for the interface.
    pub addresses: Vec<IpNetwork>,
    /// MAC of the pod's end.
    #[serde(default)]
    pub mac: Option<MacAddr>,
    /// MTU of the pod's end, in bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Destinations of its routes by the gateways of our interface.
    #[serde(default)]
    pub routes: Vec<IpNetwork>,
    /// Name and MAC of the host's end.
    #[serde(default)]
    pub host: Option<(String, Option<MacAddr>)>,
}

/// The parameters of GC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gc {
    /// `name` of the network configuration.
    pub network: String,
    /// `cni.dev/valid-attachments`: all others of the network are to go.
    pub valid: Vec<AttachmentId>,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// ADD succeeded.
    Added(Added),
    /// DEL, CHECK or GC succeeded; the daemon is ready.
    Done,
    /// The status asked for.
    Status(Box<Status>),
    /// It did not succeed.
    Error(CniError),
}

/// What ADD made: the parts of a CNI result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Name of the host's end.
    pub host_ifname: String,
    /// MAC of the host's end.
    pub host_mac: MacAddr,
    /// MAC of the pod's end.
    pub mac: MacAddr,
    /// The pod's addresses with the length of their on-link prefix (/32, /128), each with its gateway.
    pub ips: Vec<(IpNetwork, IpAddr)>,
    /// In bytes.
    pub mtu: u16,
    /// See [`crate::Lease::secondary`].
    #[serde(default)]
    pub secondary: bool,
}

/// Codes of a CNI error (specification 1.1.0, section "Error"); 100 and above are ours.
pub mod code {
    /// Incompatible CNI version.
    pub const VERSION: u32 = 1;
    /// Unsupported field in the network configuration.
    pub const UNSUPPORTED: u32 = 2;
    /// Container unknown or does not exist.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// Invalid necessary environment variables.
    pub const ENVIRONMENT: u32 = 4;
    /// I/O failure.
    pub const IO: u32 = 5;
    /// Failed to decode content.
    pub const DECODE: u32 = 6;
    /// Invalid network configuration.
    pub const CONFIG: u32 = 7;
    /// The network namespace is gone or no namespace.
    pub const NETNS: u32 = 8;
    /// Try again later.
    pub const TRY_AGAIN: u32 = 11;
    /// Not available: ADD cannot succeed (STATUS).
    pub const NOT_AVAILABLE: u32 = 50;
    /// Not available, and pods that run may have limited connectivity (STATUS).
    pub const HURT: u32 = 51;
    /// The attachment is there already.
    pub const EXISTS: u32 = 100;
    /// No address is free.
    pub const EXHAUSTED: u32 = 101;
    /// CHECK found a difference.
    pub const DIFFERS: u32 = 102;
    /// The kernel refused.
    pub const KERNEL: u32 = 103;
}

/// A CNI error: what was tried, on what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    /// One of [`code`].
    pub code: u32,
    /// One line.
    pub msg: String,
    /// What to do, or what exactly was found.
    #[serde(default)]
    pub details: String,
}
