//! The agent's part of the configuration.

use super::Settings;
use super::value::{EndpointChoice, IpamMode};
use meshd_core::{Config, Endpoints, Identity, Ipam, Outside, Pool};
use meshd_model::NodeName;
use meshd_model::net::Family;
use std::time::Duration;

impl Settings {
    /// The agent's configuration; the settings must have been validated.
    #[must_use]
    pub fn agent_config(&self, identity: Identity) -> Config {
        let wireguard = &self.wireguard;
        Config {
            node: NodeName(self.node_name.clone().unwrap_or_default()),
            identity,
            cluster_pod_cidrs: self.cluster_pod_cidrs.clone(),
            service_cidrs: self.service_cidrs.clone(),
            node_mask_sizes: [
                (Family::V4, self.node_cidr_mask_size_ipv4),
                (Family::V6, self.node_cidr_mask_size_ipv6),
            ]
            .into_iter()
            .filter_map(|(family, size)| Some((family, size?)))
            .collect(),
            node_cidrs: self.node_cidrs.clone(),
            device: wireguard.interface.clone(),
            listen_port: wireguard.listen_port,
            keepalive: Some(self.wireguard.keepalive_seconds).filter(|seconds| *seconds != 0),
            endpoints: match &wireguard.endpoints {
                EndpointChoice::InternalIp => Endpoints::InternalIp,
                EndpointChoice::Interface(name) => Endpoints::Interface(name.clone()),
                EndpointChoice::Cidr(prefix) => Endpoints::Cidr(*prefix),
            },
            mark: wireguard.mark.0,
            route_table: wireguard.route_table,
            rule_priority: wireguard.rule_priority,
            mtu: wireguard.mtu,
            resync: Duration::from_secs(self.resync_seconds),
            address_rest: Duration::from_secs(self.pods.address_rest_seconds),
            outside: Outside {
                masquerade: self.outside.masquerade,
                except: self.outside.except.clone(),
                metadata: self.outside.metadata,
            },
            allow_unnamed_pods: self.pods.allow_unnamed,
            ipam: Ipam {
                pool: self.pool(),
                reserved: self.ipam.reserved.clone(),
                collect_after: Duration::from_secs(self.ipam.collect_after_seconds),
                keep: Duration::from_secs(self.ipam.keep_seconds),
            },
        }
    }

    /// The pool mode's part: of the families that the cluster has pod CIDRs of.
    fn pool(&self) -> Option<Pool> {
        let ipam = &self.ipam;
        let size = |family| match family {
            Family::V4 => ipam.block_size_ipv4,
            Family::V6 => ipam.block_size_ipv6,
        };
        let families = self.cluster_pod_cidrs.iter().map(|c| Family::of(c.network()));
        (ipam.mode == IpamMode::Pool).then(|| Pool {
            block_sizes: families.map(|f| (f, size(f))).collect(),
            return_after: Duration::from_secs(ipam.return_after_seconds),
            rest: Duration::from_secs(ipam.block_rest_seconds),
        })
    }
}
