# A node: a box with an interface on the wire, containerd, kubelet and kube-proxy. Sourced by hack/kubernetes.
# shellcheck shell=bash

node_up() { # NODE: also after a reboot, with the disk that it had
    local node=$1
    node_box "$node"
    [ "$node" != "$CONTROL" ] || control_plane_up
    node_services "$node"
}

node_box() {
    node_network "$1"
    node_files "$1"
    cgroup_make "$NAME/$1"
    box_start "$1"
}

node_services() {
    local node=$1
    service_start "$node" containerd
    node_images "$node"
    service_start "$node" kubelet
    [ "$PROXY" = 0 ] || service_start "$node" kube-proxy
    wait_for 60 "$node to register (log: $(part_log "$node" kubelet))" kubectl get node "$node"
}

node_network() {
    local node=$1 ns
    ns=$(netns "$node")
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    node_nic "$node" eth0 wire "$node" "$UNDERLAY4" "$UNDERLAY6"
    [ "$FAMILY" = ipv6 ] || ip -n "$ns" route add default via "$UNDERLAY4.1"
    ip -n "$ns" -6 route add default via "$UNDERLAY6:1"
    [ "$SECOND_NIC" = 0 ] || node_nic "$node" eth1 wire2 "${node}b" "$SECOND4" "$SECOND6"
}

node_nic() { # NODE INTERFACE BRIDGE PEER PREFIX4 PREFIX6
    local ns ul
    ns=$(netns "$1") ul=$(netns ul)
    ip -n "$ul" link add "$4" type veth peer name "$2" netns "$ns"
    ip -n "$ul" link set "$4" master "$3" up
    [ "$FAMILY" = ipv6 ] || ip -n "$ns" addr add "$5.$(node_host4 "$1")/24" dev "$2"
    ip -n "$ns" addr add "$6$(node_host6 "$1")/64" dev "$2" nodad
    ip -n "$ns" link set "$2" up
}

node_files() {
    local node=$1 folder=$NODES/$1/kubernetes plugins=(loopback portmap bandwidth tuning firewall)
    mkdir -p "$folder" "$NODES/$node/cni-bin"
    [ "$CNI_CHOICE" != reference ] || plugins+=(bridge host-local)
    (cd "$CNI" && cp "${plugins[@]}" "$NODES/$node/cni-bin/")
    cp "$PKI/ca.crt" "$PKI/kubelet-$node.crt" "$PKI/kubelet-$node.key" "$folder/"
    cp "$CONF/kubelet-$node.kubeconfig" "$folder/kubelet.kubeconfig"
    cp "$CONF/kube-proxy.kubeconfig" "$folder/"
    echo "$API_ADDRESS" >"$NODES/$node/nameserver"
    local file
    for file in containerd.toml kubelet.yaml kube-proxy.yaml; do
        sed -e "s|@NODE@|$node|g" -e "s|@CLUSTER@|$NAME|g" -e "s|@RUNC@|$BIN/runc|g" -e "s|@PAUSE@|$PAUSE_IMAGE|g" -e "s|@DNS@|$DNS|g" \
            -e "s|@PODS@|$PODS|g" -e "s|@BIND@|$([ "$FAMILY" = dual ] && echo 0.0.0.0 || echo ::)|g" -e "s|@FILES@|$(ulimit -Hn)|g" \
            "$K8S/$file" >"$folder/$file"
    done
}

node_addresses() { [ "$FAMILY" = dual ] && echo "$(node4 "$1"),$(node6 "$1")" || node6 "$1"; }

service_start() { # NODE SERVICE
    local node=$1 service=$2 taints=()
    [ "$node" != "$CONTROL" ] || taints=(--register-with-taints=node-role.kubernetes.io/control-plane:NoSchedule)
    case $service in
        containerd)
            part_start "$node" containerd containerd -c /etc/kubernetes/containerd.toml
            wait_for 30 "containerd on $node (log: $(part_log "$node" containerd))" box_exec "$node" ctr version
            ;;
        kubelet)
            part_start "$node" kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.kubeconfig \
                --hostname-override="$node" --node-ip="$(node_addresses "$node")" "${taints[@]}" --v=2
            ;;
        kube-proxy) part_start "$node" kube-proxy kube-proxy --config=/etc/kubernetes/kube-proxy.yaml --v=2 ;;
        *) die "a node's services are containerd, kubelet and kube-proxy, not '$service'" ;;
    esac
}

cmd_service() {
    [ $# = 3 ] || die "service NODE kubelet|containerd|kube-proxy start|stop|kill|restart"
    load_cluster
    known_node "$1"
    case $2 in containerd | kubelet | kube-proxy) ;; *) die "a node's services are containerd, kubelet and kube-proxy, not '$2'" ;; esac
    case $3 in
        start) service_start "$1" "$2" ;;
        stop) part_stop "$1" "$2" ;;
        kill) part_stop "$1" "$2" KILL ;;
        restart) part_stop "$1" "$2"; service_start "$1" "$2" ;;
        *) die "start, stop, kill or restart, not '$3'" ;;
    esac
}

cmd_node() {
    [ $# -gt 1 ] || die "node NODE CMD..."
    load_cluster
    known_node "$1"
    box_exec "$@"
}

# Several nodes at once lose all that a machine loses with its power; disks stay.
cmd_reboot() {
    local node pids=() pid
    [ $# -gt 0 ] || die "reboot which nodes?"
    load_cluster
    for node in "$@"; do known_node "$node"; done
    for node in "$@"; do node_off "$node"; done
    for node in "$@"; do node_up "$node" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid"; done
    [ "$CNI_CHOICE" != reference ] || reference_routes
}

node_off() { # NODE
    box_stop "$1"
    ip netns delete "$(netns "$1")" # and with it the interfaces
    ip -n "$(netns ul)" link delete "$1" 2>/dev/null || true
    ip -n "$(netns ul)" link delete "${1}b" 2>/dev/null || true
    rm -f "$NODES/$1/run/"*
}

node_import() { box_exec "$1" ctr -n k8s.io images import "$2" >>"$LOGS/$1-images.log" 2>&1; }

node_images() {
    local image
    [ ! -e "$NODES/$1/images-loaded" ] || return 0
    for image in pause coredns tools; do node_import "$1" "$IMAGES/$image.tar" || die "could not import $image.tar: see $LOGS/$1-images.log"; done
    touch "$NODES/$1/images-loaded"
}

cmd_load() {
    local tar=${1:?load which archive?} nodes node pids=() pid
    load_cluster
    shift
    [ -r "$tar" ] || die "cannot read $tar"
    tar=$(realpath "$tar")
    nodes=("$@")
    [ $# -gt 0 ] || mapfile -t nodes < <(node_names)
    for node in "${nodes[@]}"; do known_node "$node"; done
    for node in "${nodes[@]}"; do node_import "$node" "$tar" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || { tail -n 3 "$LOGS"/n*-images.log >&2; die "could not import $tar"; }; done
}

# The reference network: the node's pod CIDRs on a bridge, and static routes between the nodes. The underlay has the
# routes too, since nothing translates what pods send to the control plane.
reference_network() {
    local node ranges
    for node in $(node_names); do
        wait_for 30 "$node's pod CIDRs" has_cidrs "$node"
        ranges=$(node_cidrs "$node" | sed 's/.*/[{"subnet": "&"}]/' | paste -sd,)
        mkdir -p "$NODES/$node/cni-net.d"
        cat >"$NODES/$node/cni-net.d/10-reference.conflist.new" <<J
{"cniVersion": "1.0.0", "name": "reference", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": 1420,
   "ipam": {"type": "host-local", "ranges": [$ranges], "routes": [$([ "$FAMILY" = ipv6 ] || echo '{"dst": "0.0.0.0/0"}, '){"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}]}
J
        mv "$NODES/$node/cni-net.d/10-reference.conflist.new" "$NODES/$node/cni-net.d/10-reference.conflist"
    done
    reference_routes
}

node_cidrs() { kubectl get node "$1" -o 'jsonpath={range .spec.podCIDRs[*]}{@}{"\n"}{end}'; }
has_cidrs() { [ -n "$(node_cidrs "$1")" ]; }

reference_routes() {
    local node from cidr
    for node in $(node_names); do
        for cidr in $(node_cidrs "$node"); do
            for from in ul $(node_names); do
                [ "$from" != "$node" ] || continue
                case $cidr in
                    *:*) ip -n "$(netns "$from")" -6 route replace "$cidr" via "$(node6 "$node")" ;;
                    *) ip -n "$(netns "$from")" route replace "$cidr" via "$(node4 "$node")" ;;
                esac
            done
        done
    done
}
