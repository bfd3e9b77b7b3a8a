# A whole cluster: up, down, status, logs. Sourced by hack/kubernetes.
# shellcheck shell=bash

cmd_up() {
    local node
    COUNT=2 FAMILY=dual CNI_CHOICE=none PROXY=1 SECOND_NIC=0 CONTROL=ul
    while [ $# -gt 0 ]; do
        case $1 in
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
            --nodes) COUNT=${2:-}; shift 2 ;;
            --family) FAMILY=${2:-}; shift 2 ;;
            --cni) CNI_CHOICE=${2:-}; shift 2 ;;
            --no-proxy) PROXY=0; shift ;;
            --second-nic) SECOND_NIC=1; shift ;;
            --control-plane-node) CONTROL=n0; shift ;;
            *) die "up does not know '$1'" ;;
        esac
    done
    [[ $COUNT =~ ^[1-9][0-9]?$ ]] || die "--nodes takes 1 to 99, not '$COUNT'"
    case $CNI_CHOICE in none | reference) ;; *) die "--cni is none or reference, not '$CNI_CHOICE'" ;; esac
    set_family "$FAMILY" "$CONTROL"
    check_machine
    build_all 0

    mkdir -p "$(dirname "$STATE")"
    mkdir "$STATE" 2>/dev/null || die "'$NAME' is up, or left over ($STATE is there): hack/kubernetes --name $NAME down"
    exec {ERRORS}>&2 # an interruption may come inside of a command whose output goes nowhere
    trap 'up_interrupted $?' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    chmod 700 "$STATE"
    mkdir "$PKI" "$CONF" "$LOGS" "$NODES"
    printf '%s\n' "COUNT=$COUNT" "FAMILY=$FAMILY" "CNI_CHOICE=$CNI_CHOICE" "PROXY=$PROXY" "SECOND_NIC=$SECOND_NIC" "CONTROL=$CONTROL" >"$STATE/cluster"
    cgroup_make "$NAME"
    cgroup_weigh
    mkdir -p "$CGROUP/$PROCESSES/$NAME/processes"
    cgroup_join

    # shellcheck disable=SC2046
    make_pki $(node_names)
    underlay_up
    [ "$CONTROL" = ul ] || node_box "$CONTROL"
    control_plane_up
    say "API server ready after $SECONDS s"
    in_parallel node_start
    wait_for 30 "the first service account" kubectl get serviceaccount default
    coredns_apply
    if [ "$CNI_CHOICE" = reference ]; then
        reference_network
        kubectl wait --for=condition=Ready nodes --all --timeout=60s >/dev/null
        kubectl -n kube-system rollout status deployment/coredns --timeout=60s >/dev/null
    fi
    cgroup_leave
    trap - EXIT INT TERM HUP
    say "$COUNT nodes up after $SECONDS s; state and logs are in $STATE"
    [ "$CNI_CHOICE" != none ] || say "the nodes are NotReady until a network is installed"
}

node_start() { if [ "$1" = "$CONTROL" ]; then node_services "$1"; else node_up "$1"; fi; }

# Runs a function for every node at once; fails if one does.
in_parallel() {
    local node pids=() pid
    for node in $(node_names); do "$1" "$node" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid" || die "a node did not come up: hack/kubernetes logs"; done
}

# Whatever ends `up` early leaves nothing; where it was not told to end, the logs that say why are kept.
up_interrupted() {
    local kept
    trap '' INT TERM HUP
    trap - EXIT
    case $1 in
        130 | 143) say "interrupted: taking down what there is" ;;
        *)
            kept=$(mktemp -d "${TMPDIR:-/tmp}/meshd-kubernetes-logs.XXXXXX")
            [ ! -d "$LOGS" ] || cp -r "$LOGS/." "$kept/" || true
            say "up failed (status $1): taking down what there is; the logs are kept in $kept"
            ;;
    esac
    cgroup_leave
    take_down || true
    exit "$1"
}

check_machine() {
    local kind
    [ "$(id -u)" = 0 ] || die "needs root, for namespaces, mounts and control groups: run it with sudo"
    need ip iproute2
    need nft nftables
    need conntrack conntrack
    need openssl openssl
    need sysctl procps
    need nsenter util-linux
    need unshare util-linux
    need mount mount
    need python3 python3
    need_all
    for kind in net mnt pid uts ipc; do [ -e /proc/self/ns/$kind ] || die "the kernel has no $kind namespaces"; done
    unshare --fork --pid --mount --uts --ipc --net true 2>/dev/null || die "this root may not make namespaces (unshare fails): in a container, it needs CAP_SYS_ADMIN"
    for kind in "${HIERARCHIES[@]}"; do
        [ -d "$CGROUP/$kind" ] && [ -w "$CGROUP/$kind" ] || die "cannot write to $CGROUP/$kind: kubelet and containerd need control groups"
    done
    grep -qw overlay /proc/filesystems || modprobe overlay 2>/dev/null || die "the kernel has no overlayfs, which containerd needs"
    [ -c /dev/net/tun ] || say "there is no /dev/net/tun: meshd-wg will not run (modprobe tun)"
    [ "$(cat /proc/sys/net/ipv6/conf/all/disable_ipv6 2>/dev/null)" = 0 ] || die "IPv6 is off on this machine (net.ipv6.conf.all.disable_ipv6)"
}

cmd_down() {
    case ${1:-} in
        '') ;;
        --keep-logs)
            mkdir -p "${2:?--keep-logs needs a folder}"
            [ ! -d "$LOGS" ] || cp -r "$LOGS/." "$2/"
            ;;
        *) die "down takes --keep-logs FOLDER or nothing" ;;
    esac
    [ "$(id -u)" = 0 ] || die "needs root"
    find_bin
    take_down
}

# Goes on past what fails, and says at the end what is left.
take_down() {
    local round pid ns left=()
    for round in $(seq 100); do
        mapfile -t left < <(cluster_processes)
        [ ${#left[@]} -gt 0 ] || break
        for pid in "${left[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
        sleep 0.1
    done
    for ns in $(cluster_netns); do ip netns delete "$ns" || true; done
    for round in $(seq 50); do # a group is busy until its last process is gone for good
        cgroup_remove
        [ -n "$(cgroup_folders)" ] || break
        sleep 0.1
    done
    # Never into a mount: that would remove what is mounted.
    if [ -d "$STATE" ] && [ -z "$(state_mounts)" ]; then rm -rf --one-file-system "$STATE"; fi

    mapfile -t left < <(
        cluster_processes | sed 's/^/process /'
        cluster_netns | sed 's/^/network namespace /'
        cgroup_folders | sed 's/^/control group /'
        state_mounts | sed 's/^/mount /'
        [ ! -e "$STATE" ] || echo "folder $STATE"
    )
    [ ${#left[@]} -gt 0 ] || { say "nothing of '$NAME' is left"; return 0; }
    for round in "${left[@]}"; do say "left: $round"; done
    return 1
}

cluster_netns() { ls /run/netns 2>/dev/null | grep -Ex "$NAME-(ul|n[0-9]+)" || true; }
cluster_processes() {
    local ns
    {
        cgroup_processes
        for ns in $(cluster_netns); do ip netns pids "$ns" 2>/dev/null || true; done
    } | sort -un | grep -vxF "$$" || true
}
state_mounts() { awk -v at="$STATE/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo; }

cmd_status() {
    local box part parts
    load_cluster
    echo "cluster $NAME: $COUNT nodes, $FAMILY, network $CNI_CHOICE; API server $API"
    echo "state $STATE, logs $LOGS, binaries $BIN"
    for box in ul $(node_names); do
        parts=()
        [ "$box" != "$CONTROL" ] || parts+=(etcd kube-apiserver kube-controller-manager kube-scheduler)
        [ "$box" = ul ] || parts+=(containerd kubelet kube-proxy)
        for part in "${parts[@]}"; do
            [ -n "$(part_pid "$box" "$part")" ] && echo "$box $part runs" || echo "$box $part does not run"
        done
    done
    kubectl get nodes -o wide || true
    kubectl get pods -A -o wide || true
}

cmd_logs() {
    [ -d "$LOGS" ] || die "no cluster '$NAME' is up (looked for $LOGS)"
    if [ -z "${1:-}" ]; then
        (cd "$LOGS" && ls -1 ./*.log | sed 's|^\./||; s|\.log$||')
        return
    fi
    local log=$LOGS/$1.log
    [ -e "$log" ] || log=$LOGS/kube-$1.log
    [ -e "$log" ] || die "no log '$1' in $LOGS; without an argument, logs lists them"
    cat "$log"
}
