//! Judges the values: everything that is wrong is named at once, each with its key and what to do.

use super::value::{EndpointChoice, IpamMode};
use super::{Settings, Wireguard};
use ipnetwork::IpNetwork;
use meshd_model::kernel::{IFNAME_MAX, Mark, POD_IFNAME_PREFIX, TABLE_MAIN};
use meshd_model::net::{canonical, contains, overlaps};
use std::fmt;
use std::path::Path;

/// Most prefixes in one list: they are compared pairwise, and become kernel rules.
const PREFIXES_MAX: usize = 64;
/// Longest path of a Unix socket, its terminator left out (unix(7)).
const SOCKET_PATH_MAX: usize = 107;
/// Room that the mover of a fresh socket needs beside its final name.
const SOCKET_SUFFIX: usize = 4;

/// All that is wrong, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl Problems {
    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.0.push(problem());
        }
    }
}

impl Settings {
    /// Checks every value and their fit.
    pub fn validate(&self) -> Result<(), Problems> {
        let mut problems = Problems::default();
        self.check_node(&mut problems);
        self.check_api_server(&mut problems);
        self.check_prefixes(&mut problems);
        self.wireguard.check(&mut problems);
        self.check_numbers(&mut problems);
        if problems.0.is_empty() {
            Ok(())
        } else {
            Err(problems)
        }
    }

    fn check_node(&self, problems: &mut Problems) {
        match self.node_name.as_deref() {
            None | Some("") => problems.0.push(
                "node_name is not set: give --node-name, or NODE_NAME from the downward API (spec.nodeName)"
                    .into(),
            ),
            Some(name) => problems.check(is_node_name(name), || {
                format!("node_name {name:?} cannot be a Node: up to 253 of a-z, 0-9, '-' and '.'")
            }),
        }
        for (key, path) in [("state_dir", &self.state_dir), ("socket", &self.socket)] {
            problems.check(path.is_absolute(), || {
                format!("{key} {} must be an absolute path", path.display())
            });
        }
        check_socket_length(problems, &self.socket);
        self.check_cni(problems);
    }

    fn check_cni(&self, problems: &mut Problems) {
        let cni = &self.cni;
        let paths = [
            ("cni.conflist", &cni.conflist),
            ("cni.conf_dir", &cni.conf_dir),
            ("cni.bin_dir", &cni.bin_dir),
        ];
        for (key, path) in paths {
            let Some(path) = path else { continue };
            problems.check(path.is_absolute(), || {
                format!("{key} {} must be an absolute path", path.display())
            });
        }
        let Some(conflist) = &cni.conflist else { return };
        problems.check(cni.conf_dir.is_some(), || {
            "cni.conflist is set and cni.conf_dir is not: name the folder where the container runtime looks".into()
        });
        // What libcni and containerd take for a list.
        problems.check(conflist.extension().is_some_and(|e| e == "conflist"), || {
            format!("cni.conflist {} must be named *.conflist", conflist.display())
        });
    }

    /// The server is said once, or there would be a choice that nobody sees.
    fn check_api_server(&self, problems: &mut Problems) {
        let given = [
            ("kubeconfig", self.kubeconfig.is_some()),
            ("api_server", self.api_server.is_some()),
            ("api_server_from", self.api_server_from.is_some()),
        ];
        let given: Vec<_> = given.iter().filter(|(_, is)| *is).map(|(key, _)| *key).collect();
        problems.check(given.len() <= 1, || {
            format!(
                "{} each say where the API server is: give one",
                given.join(" and ")
            )
        });
        problems.check(self.service_account_dir.is_absolute(), || {
            format!(
                "service_account_dir {} must be an absolute path",
                self.service_account_dir.display()
            )
        });
        let Some(server) = &self.api_server else { return };
        let authority = server.strip_prefix("https://").unwrap_or(server);
        let port = authority.trim_end_matches('/').rsplit_once(':');
        problems.check(
            port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0)),
            || format!("api_server {server:?} must be https://HOST:PORT or HOST:PORT, an IPv6 address in brackets"),
        );
    }

    fn check_prefixes(&self, problems: &mut Problems) {
        problems.check(!self.cluster_pod_cidrs.is_empty(), || {
            "cluster_pod_cidrs is mandatory: name all pod CIDRs of the cluster (kube-controller-manager's \
             --cluster-cidr), else nothing says which packets must never be in the clear"
                .into()
        });
        let lists = [
            ("cluster_pod_cidrs", &self.cluster_pod_cidrs),
            ("service_cidrs", &self.service_cidrs),
            ("outside.except", &self.outside.except),
            ("node_cidrs", &self.node_cidrs),
            ("ipam.reserved", &self.ipam.reserved),
        ];
        let sizes = [
            ("node_cidr_mask_size_ipv4", self.node_cidr_mask_size_ipv4, 32),
            ("node_cidr_mask_size_ipv6", self.node_cidr_mask_size_ipv6, 128),
        ];
        for (key, size, most) in sizes {
            problems.check(size.is_none_or(|size| (8..=most).contains(&size)), || {
                format!("{key} is {}; it must be 8 to {most}", size.unwrap_or_default())
            });
        }
        for (key, list) in lists {
            problems.check(list.len() <= PREFIXES_MAX, || {
                format!(
                    "{key} has {} prefixes; at most {PREFIXES_MAX} are possible",
                    list.len()
                )
            });
            for prefix in list {
                check_prefix(problems, key, *prefix);
            }
        }
        for reserved in self.ipam.reserved.iter().take(PREFIXES_MAX) {
            let mut pods = self.cluster_pod_cidrs.iter();
            problems.check(pods.any(|pods| contains(*pods, *reserved)), || {
                format!("ipam.reserved {reserved} lies in none of cluster_pod_cidrs: no pod could have such an address")
            });
        }
        for (i, pods) in self.cluster_pod_cidrs.iter().take(PREFIXES_MAX).enumerate() {
            for other in self.cluster_pod_cidrs.iter().take(i) {
                problems.check(!overlaps(*pods, *other), || {
                    format!("cluster_pod_cidrs {other} and {pods} overlap: keep the wider one")
                });
            }
            for except in self.outside.except.iter().take(PREFIXES_MAX) {
                problems.check(!overlaps(*pods, *except), || {
                    format!("outside.except {except} overlaps cluster_pod_cidrs {pods}, which is not outside: pods reach it through the tunnel, and nothing else")
                });
            }
            for services in self.service_cidrs.iter().take(PREFIXES_MAX) {
                problems.check(!overlaps(*pods, *services), || {
                    format!("cluster_pod_cidrs {pods} overlaps service_cidrs {services}: an address is a pod's or a Service's")
                });
            }
        }
    }

    fn check_blocks(&self, problems: &mut Problems) {
        let ipam = &self.ipam;
        for (key, size, low, high, is_ipv4) in [
            ("ipam.block_size_ipv4", ipam.block_size_ipv4, 16, 30, true),
            ("ipam.block_size_ipv6", ipam.block_size_ipv6, 64, 126, false),
        ] {
            problems.check((low..=high).contains(&size), || {
                format!("{key} is {size}; it must be {low} to {high}")
            });
            if ipam.mode != IpamMode::Pool {
                continue;
            }
            let pods = self.cluster_pod_cidrs.iter().filter(|c| c.is_ipv4() == is_ipv4);
            for pods in pods.take(PREFIXES_MAX) {
                problems.check(pods.prefix() <= size, || {
                    format!("cluster_pod_cidrs {pods} is smaller than a block, which is a /{size} by {key}")
                });
            }
        }
    }

    fn check_numbers(&self, problems: &mut Problems) {
        problems.check(self.metrics_listen.is_none_or(|at| at.port() != 0), || {
            "metrics_listen needs a port, 1 to 65535, or nobody could find it".into()
        });
        let recording = &self.recording;
        for (key, value, low, high) in [
            ("resync_seconds", self.resync_seconds, 5, 3600),
            (
                "pods.address_rest_seconds",
                self.pods.address_rest_seconds,
                0,
                86_400,
            ),
            (
                "ipam.return_after_seconds",
                self.ipam.return_after_seconds,
                10,
                86_400,
            ),
            ("ipam.block_rest_seconds", self.ipam.block_rest_seconds, 1, 86_400),
            ("ipam.keep_seconds", self.ipam.keep_seconds, 60, 2_592_000),
            ("recording.segment_mib", recording.segment_mib, 1, 1024),
            ("recording.total_mib", recording.total_mib, 2, 1 << 20),
        ] {
            problems.check((low..=high).contains(&value), || {
                format!("{key} is {value}; it must be {low} to {high}")
            });
        }
        self.check_blocks(problems);
        let collect_after = self.ipam.collect_after_seconds;
        problems.check(
            collect_after == 0 || (10..=86_400).contains(&collect_after),
            || {
                format!(
                    "ipam.collect_after_seconds is {collect_after}; it must be 10 to 86400, or 0 for never"
                )
            },
        );
        problems.check(recording.total_mib / 2 >= recording.segment_mib, || {
            "recording.total_mib must hold at least two of recording.segment_mib: the oldest is dropped whole".into()
        });
    }
}

impl Wireguard {
    fn check(&self, problems: &mut Problems) {
        check_ifname(problems, "wireguard.interface", &self.interface);
        problems.check(!self.interface.starts_with(POD_IFNAME_PREFIX), || {
            format!("wireguard.interface may not begin with {POD_IFNAME_PREFIX}: pods' interfaces do")
        });
        problems.check(self.listen_port != 0, || {
            "wireguard.listen_port is 0; peers need a fixed port, 1 to 65535".into()
        });
        // IPv6 needs 1280 (RFC 8200, section 5); WireGuard takes up to 80 bytes of the underlay's 65,535.
        problems.check(self.mtu.is_none_or(|mtu| (1280..=65_455).contains(&mtu)), || {
            format!(
                "wireguard.mtu is {}; it must be 1280 to 65455 bytes",
                self.mtu.unwrap_or_default()
            )
        });
        match &self.endpoints {
            EndpointChoice::InternalIp => {}
            EndpointChoice::Interface(name) => check_ifname(problems, "wireguard.endpoints interface", name),
            EndpointChoice::Cidr(prefix) => check_prefix(problems, "wireguard.endpoints", *prefix),
        }
        let Mark { value, mask } = self.mark.0;
        problems.check(value != 0 && value & !mask == 0, || {
            format!(
                "wireguard.mark {} must have a value other than 0 that lies under its mask",
                self.mark
            )
        });
        problems.check(mask & 0xc000 == 0, || {
            format!(
                "wireguard.mark {} takes bits 0x4000 or 0x8000, which are kube-proxy's",
                self.mark
            )
        });
        // 253 to 255 are default, main and local.
        problems.check(
            self.route_table != 0 && !(TABLE_MAIN - 1..=TABLE_MAIN + 1).contains(&self.route_table),
            || {
                format!(
                    "wireguard.route_table {} is the system's own: choose an unused one",
                    self.route_table
                )
            },
        );
        problems.check((1..=32_765).contains(&self.rule_priority), || {
            format!(
                "wireguard.rule_priority is {}; it must be 1 to 32765, before the main table's rule",
                self.rule_priority
            )
        });
        problems.check(self.socket_dir.is_absolute(), || {
            format!(
                "wireguard.socket_dir {} must be an absolute path",
                self.socket_dir.display()
            )
        });
    }
}

/// A DNS subdomain (RFC 1123), as every Node name is.
fn is_node_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            let bytes = label.as_bytes();
            let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && bytes.iter().all(|b| alphanumeric(b) || *b == b'-')
        })
}

fn check_prefix(problems: &mut Problems, key: &str, prefix: IpNetwork) {
    problems.check(prefix.ip() == prefix.network(), || {
        format!("{key} {prefix} has host bits set: write {}", canonical(prefix))
    });
    let network = prefix.network();
    let unusable = prefix.prefix() == 0 || network.is_loopback() || network.is_multicast();
    problems.check(!unusable, || {
        format!("{key} {prefix} holds addresses that are nobody's to give")
    });
}

/// What the kernel takes as an interface name (dev_valid_name).
fn check_ifname(problems: &mut Problems, key: &str, name: &str) {
    let valid = (1..=IFNAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
    problems.check(valid, || {
        format!(
            "{key} {name:?} is no interface name: 1 to {IFNAME_MAX} bytes without blanks, '/', ':' and '%'"
        )
    });
}

fn check_socket_length(problems: &mut Problems, socket: &Path) {
    let length = socket.as_os_str().len();
    let max = SOCKET_PATH_MAX - SOCKET_SUFFIX;
    problems.check(length <= max, || {
        format!(
            "socket {} has {length} bytes; the system allows {max}: choose a shorter path",
            socket.display()
        )
    });
}
