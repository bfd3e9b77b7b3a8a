//! The daemon's configuration: a TOML file, and flags for what a node differs in.
//!
//! [`load`] reads, [`Settings::validate`] judges, [`Settings::agent_config`] makes the agent's part of it,
//! [`show::show`] prints the effective whole with its documentation. No secret is ever part of it.

pub mod file;
pub mod keys;
pub mod show;
pub mod value;

mod agent;
mod validate;

#[cfg(test)]
mod tests;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use value::{EndpointChoice, IpamMode, LogFormat, MarkText, WireguardMode};

pub use file::{Overrides, load};
pub use validate::Problems;

/// Where the configuration is read from unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/meshd/meshd.toml";
/// Where keys, leases and recordings are kept unless configured.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/meshd";

/// The effective configuration. [`keys::KEYS`] documents each key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Name of the own Node.
    pub node_name: Option<String>,
    /// Path of a kubeconfig; the pod's service account where none is given.
    pub kubeconfig: Option<PathBuf>,
    /// Where the API server is, for the service account.
    pub api_server: Option<String>,
    /// Path of a kubeconfig whose server and authority are used with the service account.
    pub api_server_from: Option<PathBuf>,
    /// Folder of the service account.
    pub service_account_dir: PathBuf,
    /// Folder of the key, the leases and the recording.
    pub state_dir: PathBuf,
    /// Path of the local socket.
    pub socket: PathBuf,
    /// The cluster's pod CIDRs.
    pub cluster_pod_cidrs: Vec<IpNetwork>,
    /// The cluster's service CIDRs.
    pub service_cidrs: Vec<IpNetwork>,
    /// Shortest prefix of a node's IPv4 pod CIDR.
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The same for IPv6.
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// Where the nodes' own addresses are.
    pub node_cidrs: Vec<IpNetwork>,
    /// Seconds between two observations of the kernel.
    pub resync_seconds: u64,
    /// Where metrics are served.
    pub metrics_listen: Option<SocketAddr>,
    /// The tunnel.
    pub wireguard: Wireguard,
    /// Pods and their addresses.
    pub pods: Pods,
    /// How addresses are managed.
    pub ipam: Ipam,
    /// The node's CNI folders.
    pub cni: Cni,
    /// The world outside of the cluster.
    pub outside: Outside,
    /// The recording.
    pub recording: Recording,
    /// The log.
    pub log: Log,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_name: None,
            kubeconfig: None,
            api_server: None,
            api_server_from: None,
            service_account_dir: meshd_kube::SERVICE_ACCOUNT.into(),
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: meshd_model::cni::SOCKET.into(),
            cluster_pod_cidrs: Vec::new(),
            service_cidrs: Vec::new(),
            node_cidr_mask_size_ipv4: None,
            node_cidr_mask_size_ipv6: None,
            node_cidrs: Vec::new(),
            resync_seconds: 60,
            metrics_listen: None,
            wireguard: Wireguard::default(),
            pods: Pods::default(),
            ipam: Ipam::default(),
            cni: Cni::default(),
            outside: Outside::default(),
            recording: Recording::default(),
            log: Log::default(),
        }
    }
}

/// The tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wireguard {
    /// What carries it.
    pub mode: WireguardMode,
    /// Folder of the userspace device's control sockets.
    pub socket_dir: PathBuf,
    /// Interface name.
    pub interface: String,
    /// UDP port.
    pub listen_port: u16,
    /// Overlay MTU in bytes; measured where none is given.
    pub mtu: Option<u16>,
    /// Which addresses are published as endpoints.
    pub endpoints: EndpointChoice,
    /// Seconds between keepalives to every peer; 0 for none.
    pub keepalive_seconds: u16,
    /// Mark of the device's own packets.
    pub mark: MarkText,
    /// Routing table for the peers' own addresses.
    pub route_table: u32,
    /// Priority of the rules that lead there.
    pub rule_priority: u32,
}

impl Default for Wireguard {
    fn default() -> Self {
        Self {
            mode: WireguardMode::Auto,
            socket_dir: "/var/run/wireguard".into(),
            interface: "meshd0".into(),
            listen_port: 51820,
            mtu: None,
            endpoints: EndpointChoice::InternalIp,
            keepalive_seconds: 0,
            mark: MarkText::default(),
            route_table: 1090,
            rule_priority: 1090,
        }
    }
}

/// Pods and their addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pods {
    /// Seconds that a freed address rests.
    pub address_rest_seconds: u64,
    /// Whether ADD succeeds where the runtime names no pod.
    pub allow_unnamed: bool,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            address_rest_seconds: 60,
            allow_unnamed: false,
        }
    }
}

/// How addresses are managed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ipam {
    /// Where the node's pod CIDRs come from.
    pub mode: IpamMode,
    /// Prefix length of an IPv4 block.
    pub block_size_ipv4: u8,
    /// The same for IPv6.
    pub block_size_ipv6: u8,
    /// Seconds that a block is empty before it is given back.
    pub return_after_seconds: u64,
    /// Seconds that a freed block rests.
    pub block_rest_seconds: u64,
    /// Addresses that a pod gets only by asking for them.
    pub reserved: Vec<IpNetwork>,
    /// Seconds until an abandoned attachment is taken down; 0 for never.
    pub collect_after_seconds: u64,
    /// Seconds that addresses are kept for a pod that is away.
    pub keep_seconds: u64,
}

impl Default for Ipam {
    fn default() -> Self {
        Self {
            mode: IpamMode::Kubernetes,
            block_size_ipv4: 26,
            block_size_ipv6: 122,
            return_after_seconds: 600,
            block_rest_seconds: 60,
            reserved: Vec::new(),
            collect_after_seconds: 60,
            keep_seconds: 86_400,
        }
    }
}

/// What the daemon puts where the node's container runtime looks for it; nothing unless configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cni {
    /// The network configuration list to put in place.
    pub conflist: Option<PathBuf>,
    /// The runtime's folder of network configurations.
    pub conf_dir: Option<PathBuf>,
    /// The runtime's folder of plugins.
    pub bin_dir: Option<PathBuf>,
}

impl Cni {
    /// Where the configuration goes: under the name that it has.
    #[must_use]
    pub fn target(&self) -> Option<PathBuf> {
        let name = self.conflist.as_ref()?.file_name()?;
        Some(self.conf_dir.as_ref()?.join(name))
    }
}

/// The world outside of the cluster, as pods see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outside {
    /// Whether pods reach it, with the node's address.
    pub masquerade: bool,
    /// Destinations there that pods do not reach.
    pub except: Vec<IpNetwork>,
    /// Whether pods reach the cloud's metadata.
    pub metadata: bool,
}

impl Default for Outside {
    fn default() -> Self {
        Self {
            masquerade: true,
            except: Vec::new(),
            metadata: false,
        }
    }
}

/// The recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recording {
    /// Whether anything is recorded.
    pub enabled: bool,
    /// Its folder; `recording` under the state folder where none is given.
    pub dir: Option<PathBuf>,
    /// Size at which a segment ends, in MiB.
    pub segment_mib: u64,
    /// Size of all segments together, in MiB.
    pub total_mib: u64,
}

impl Default for Recording {
    fn default() -> Self {
        Self {
            enabled: true,
            dir: None,
            segment_mib: 8,
            total_mib: 64,
        }
    }
}

/// The log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `tracing` filter.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info,nlink=error".into(),
            format: LogFormat::Text,
        }
    }
}

impl Settings {
    /// Where the recording goes; none if it is switched off.
    #[must_use]
    pub fn recording_dir(&self) -> Option<PathBuf> {
        let dir = self.recording.dir.clone();
        self.recording
            .enabled
            .then(|| dir.unwrap_or_else(|| self.state_dir.join("recording")))
    }
}
