//! Every key of the configuration with its meaning, unit and default: what `--print-config` prints, what the
//! example file is tested against, and what an unknown key is compared with.

/// A key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its path, `table.key`.
    pub path: &'static str,
    /// What it means, with unit and default.
    pub doc: &'static str,
}

/// All of them, in the order in which they are printed: top level first, then table by table.
pub const KEYS: &[Key] = &[
    Key {
        path: "node_name",
        doc: "Name of the Node that this daemon runs on. Default: the flag --node-name or the variable NODE_NAME.",
    },
    Key {
        path: "kubeconfig",
        doc: "Path of a kubeconfig, with the server and the credentials. Default: the pod's service account.",
    },
    Key {
        path: "api_server",
        doc: "Where the API server is, https://HOST:PORT or HOST:PORT, while the credentials are the service account's. For nodes on which the service address leads nowhere yet, as without kube-proxy. Default: the variables KUBERNETES_SERVICE_HOST and _PORT.",
    },
    Key {
        path: "api_server_from",
        doc: "Path of a kubeconfig whose server and certificate authority are used instead, as the kubelet's own; its credentials are not. Default: none.",
    },
    Key {
        path: "service_account_dir",
        doc: "Folder with the service account's token and ca.crt. Default: /var/run/secrets/kubernetes.io/serviceaccount.",
    },
    Key {
        path: "state_dir",
        doc: "Folder of the node's key, the leases and the recording. Default: /var/lib/meshd.",
    },
    Key {
        path: "socket",
        doc: "Path of the local socket, for meshd-cni and meshctl. Default: /run/meshd/meshd.sock.",
    },
    Key {
        path: "cluster_pod_cidrs",
        doc: "All pod CIDRs of the cluster, of both families. Nothing with such an address leaves or enters the node in the clear. Mandatory.",
    },
    Key {
        path: "service_cidrs",
        doc: "The cluster's service CIDRs: no peer may claim any part of them. Default: none.",
    },
    Key {
        path: "node_cidr_mask_size_ipv4",
        doc: "Length of the shortest prefix that a node's IPv4 pod CIDR has (kube-controller-manager's option of this name), 8 to 32: no peer may claim a wider one. Default: that of this node's own.",
    },
    Key {
        path: "node_cidr_mask_size_ipv6",
        doc: "The same for IPv6, 8 to 128. Default: that of this node's own.",
    },
    Key {
        path: "node_cidrs",
        doc: "Where the nodes' own addresses are: no node may claim others as its own. Endpoints may lie elsewhere. Default: anywhere.",
    },
    Key {
        path: "resync_seconds",
        doc: "Seconds between two observations of the node's kernel, after which differences are repaired; 5 to 3600. Default: 60.",
    },
    Key {
        path: "metrics_listen",
        doc: "ADDRESS:PORT at which a Prometheus server reads metrics, by HTTP at /metrics, without authentication: they are numbers only, and name no pod. Default: none, nothing listens.",
    },
    Key {
        path: "wireguard.mode",
        doc: "What carries the tunnel: auto (the kernel's WireGuard where it is there, meshd-wg otherwise), kernel or userspace. Default: auto.",
    },
    Key {
        path: "wireguard.socket_dir",
        doc: "Folder of the userspace device's control sockets. Default: /var/run/wireguard.",
    },
    Key {
        path: "wireguard.interface",
        doc: "Name of the WireGuard interface; at most 15 bytes. Default: meshd0.",
    },
    Key {
        path: "wireguard.listen_port",
        doc: "UDP port of the WireGuard interface. Default: 51820.",
    },
    Key {
        path: "wireguard.mtu",
        doc: "MTU of the overlay in bytes, 1280 to 65455. Default: measured from the underlay.",
    },
    Key {
        path: "wireguard.endpoints",
        doc: "Which of the node's addresses its peers send to: internal-ip (status.addresses of the Node), interface:NAME or cidr:PREFIX. Default: internal-ip.",
    },
    Key {
        path: "wireguard.keepalive_seconds",
        doc: "Seconds between keepalives to every peer, for a node that its peers reach through a NAT only: shorter than the NAT forgets, 25 suits most. 0 for none. Default: 0.",
    },
    Key {
        path: "wireguard.mark",
        doc: "Mark of the device's own packets, VALUE/MASK. The mask's bits must be nobody else's on the node; kube-proxy has 0x4000 and 0x8000. Default: 0x10000000/0x10000000.",
    },
    Key {
        path: "wireguard.route_table",
        doc: "Number of the routing table that leads pods to other nodes' own addresses; must be unused. Default: 1090.",
    },
    Key {
        path: "wireguard.rule_priority",
        doc: "Priority of the policy rules that lead to that table; 1 to 32765. Default: 1090.",
    },
    Key {
        path: "pods.address_rest_seconds",
        doc: "Seconds that a freed address rests before it is handed out again; 0 to 86400. Default: 60.",
    },
    Key {
        path: "pods.allow_unnamed",
        doc: "Whether a container gets an address if its runtime names no pod for it. Default: false.",
    },
    Key {
        path: "ipam.mode",
        doc: "Where a node's pod CIDRs come from: kubernetes (spec.podCIDRs of its Node, from kube-controller-manager's --allocate-node-cidrs), or pool (the node claims blocks of cluster_pod_cidrs for itself, as many as its pods need). The same on all nodes; pods that run when it changes are to be made again. Default: kubernetes.",
    },
    Key {
        path: "ipam.block_size_ipv4",
        doc: "Prefix length of a block of IPv4 addresses in mode pool, 16 to 30. Default: 26.",
    },
    Key {
        path: "ipam.block_size_ipv6",
        doc: "The same for IPv6, 64 to 126. Default: 122.",
    },
    Key {
        path: "ipam.return_after_seconds",
        doc: "Seconds that a block is empty before its node gives it back in mode pool, unless it is the node's first; 10 to 86400. Default: 600.",
    },
    Key {
        path: "ipam.block_rest_seconds",
        doc: "Seconds that a freed block rests before a node claims it again in mode pool; 1 to 86400. Default: 60.",
    },
    Key {
        path: "ipam.reserved",
        doc: "Addresses among the pod CIDRs that no pod gets but one that asks for them, by the annotation meshd.dev/ips or through its runtime. Default: none.",
    },
    Key {
        path: "ipam.collect_after_seconds",
        doc: "Seconds after which the addresses of a pod are taken back without its runtime's DEL, once its network namespace is gone; if only the pod is gone at the API server, ten times as many. 0 for never, 10 to 86400. Default: 60.",
    },
    Key {
        path: "ipam.keep_seconds",
        doc: "Seconds that the addresses of a pod with the annotation meshd.dev/keep-address: \"true\" are kept, after it is gone from the node, for the next of its name; 60 to 2592000. Default: 86400.",
    },
    Key {
        path: "cni.conflist",
        doc: "The CNI network configuration list that the daemon puts into cni.conf_dir once it is ready, under the name that it has here. Default: none, it is put there by other means.",
    },
    Key {
        path: "cni.conf_dir",
        doc: "The folder where the container runtime looks for network configurations (/etc/cni/net.d of the host). Default: none.",
    },
    Key {
        path: "cni.bin_dir",
        doc: "The folder where the container runtime looks for plugins (/opt/cni/bin of the host), for meshd install. Default: none.",
    },
    Key {
        path: "outside.masquerade",
        doc: "Whether pods reach addresses outside of the cluster, with this node's address in place of their own. If not, what they send there is dropped, unless something else on the node translates it. Default: true.",
    },
    Key {
        path: "outside.except",
        doc: "Destinations outside of the cluster that pods do not reach: what they send there is dropped and counted, never sent with a pod's address. Services and other nodes' own addresses are not outside. An example: 168.63.129.16/32, where Azure gives a machine its settings (but also its DNS, which CoreDNS may forward to). Default: none.",
    },
    Key {
        path: "outside.metadata",
        doc: "Whether pods reach the cloud's metadata (169.254.169.254, 100.100.100.200, fd00:ec2::254, fd20:ce::254), which gives them the node's credentials. Default: false.",
    },
    Key {
        path: "recording.enabled",
        doc: "Whether the agent's events and actions are recorded, for replay. Default: true.",
    },
    Key {
        path: "recording.dir",
        doc: "Folder of the recording. Default: recording under state_dir.",
    },
    Key {
        path: "recording.segment_mib",
        doc: "Size at which a segment of the recording ends and the next begins, in MiB; 1 to 1024. Default: 8.",
    },
    Key {
        path: "recording.total_mib",
        doc: "Size of the whole recording in MiB, at least two segments; the oldest segment is dropped. Default: 64.",
    },
    Key {
        path: "log.filter",
        doc: "What is logged: a level (error, warn, info, debug, trace), or directives like info,meshd_kernel=debug. The variable MESHD_LOG overrides it. Default: info,nlink=error.",
    },
    Key {
        path: "log.format",
        doc: "text or json. Default: text.",
    },
];

/// The known key that is most like this one.
#[must_use]
pub fn nearest(path: &str) -> &'static str {
    let last = path.rsplit('.').next().unwrap_or(path);
    let distance = |key: &Key| {
        let key_last = key.path.rsplit('.').next().unwrap_or(key.path);
        // The whole path, or the right name in the wrong table.
        strsim::damerau_levenshtein(key.path, path).min(strsim::damerau_levenshtein(key_last, last) + 1)
    };
    KEYS.iter()
        .min_by_key(|key| distance(key))
        .map_or("", |key| key.path)
}
