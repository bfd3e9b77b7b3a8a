//! What a simulated cluster begins with: its nodes, its API server's configuration, its agents'.

use crate::config::{self, Config};
use crate::kernel::{Kernel, SECOND_IFNAME, UNDERLAY_MTU};
use crate::node::Node;
use crate::random;
use crate::sim::{BOOT, EPOCH, WIREGUARD_PORT};
use meshd_apiserver::{NodeCidrs, NodeIpam};
use meshd_core::{Config as AgentConfig, Endpoints, Identity, Ipam};
use meshd_model::kernel::Mark;
use meshd_model::{Boot, KeyHandle, NodeName, Now, PublicKey, Wall};
use meshd_wireguard_proto::Device;
use std::net::IpAddr;
use std::time::Duration;
use zeroize::Zeroizing;

/// Name of the WireGuard interface.
const DEVICE: &str = "meshd0";

/// A node as it comes; `run` tells one machine from the next under its name.
pub(crate) fn node(config: &Config, node: usize, run: u64) -> Node {
    let addresses = config.underlay_addresses(node, 0);
    let now = Now {
        boot: Boot(BOOT),
        wall: Wall(EPOCH),
    };
    let mut kernel = kernel(tunnel(config, &[node as u64, run], now));
    wire(config, &mut kernel, node, &addresses, UNDERLAY_MTU);
    Node::new(
        NodeName(format!("node-{}", node + 1)),
        addresses,
        kernel,
        node as u64,
    )
}

/// A kernel after a boot, on no network yet.
pub(crate) fn kernel(tunnel: Device) -> Kernel {
    Kernel::new(tunnel, DEVICE)
}

/// Puts a node's kernel on the underlay.
pub(crate) fn wire(config: &Config, kernel: &mut Kernel, node: usize, addresses: &[IpAddr], mtu: u16) {
    kernel.wire(addresses, &config.of_families(config::underlay_cidrs()), mtu);
    if config.second_interface {
        let nets = config.of_families(config::second_cidrs());
        kernel.wire_second(&config.second_addresses(node), &nets, mtu);
    }
}

/// The inside of a WireGuard interface that knows nothing yet; the numbers tell it from every other.
pub(crate) fn tunnel(config: &Config, numbers: &[u64], now: Now) -> Device {
    let seed = Zeroizing::new(random::derive(config.seed, "tunnel", numbers));
    Device::new(None, seed, now)
}

pub(crate) fn api_server(config: &Config) -> meshd_apiserver::Config {
    let cidrs = config.of_families(config.pod_cidrs).into_iter();
    let cidrs = cidrs.map(|net| NodeCidrs {
        network: net.network(),
        prefix: net.prefix(),
        node_prefix: config::NODE_PREFIXES[usize::from(net.is_ipv6())],
    });
    meshd_apiserver::Config {
        seed: config.seed,
        node_ipam: (config.node_ipam && config.pool.is_none()).then(|| NodeIpam {
            cluster_cidrs: cidrs.collect(),
        }),
        ..meshd_apiserver::Config::default()
    }
}

/// What all agents are told; each adds its name and key.
pub(crate) fn agent(config: &Config) -> AgentConfig {
    AgentConfig {
        node: NodeName(String::new()),
        identity: Identity {
            handle: KeyHandle(0),
            public_key: PublicKey([0; 32]),
        },
        cluster_pod_cidrs: config.of_families(config.pod_cidrs),
        service_cidrs: config.of_families(config::service_cidrs()),
        node_mask_sizes: std::collections::BTreeMap::new(),
        node_cidrs: Vec::new(),
        device: DEVICE.to_owned(),
        listen_port: WIREGUARD_PORT,
        endpoints: if config.second_interface {
            Endpoints::Interface(SECOND_IFNAME.to_owned())
        } else {
            Endpoints::InternalIp
        },
        keepalive: None,
        mark: Mark {
            value: 0x1000_0000,
            mask: 0x1000_0000,
        },
        route_table: 5109,
        rule_priority: 5109,
        mtu: None,
        resync: config.resync,
        address_rest: Duration::from_secs(10),
        outside: config.outside.clone(),
        allow_unnamed_pods: false,
        ipam: Ipam {
            pool: config.pool.clone(),
            ..Ipam::default()
        },
    }
}
