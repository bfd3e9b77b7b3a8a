# The underlay, and the control plane in the box that CONTROL names. Sourced by hack/kubernetes.
# shellcheck shell=bash

underlay() { nsenter --net="/run/netns/$(netns ul)" env "PATH=$BIN:$PATH" "KUBECONFIG=$ADMIN" "$@"; }
kubectl() { underlay kubectl "$@"; }

underlay_up() {
    local ns
    ns=$(netns ul)
    ip netns add "$ns"
    ip -n "$ns" link set lo up
    wire wire "$UNDERLAY4.1/24" "$UNDERLAY6:1/64"
    [ "$SECOND_NIC" = 0 ] || wire wire2 "$SECOND4.1/24" "$SECOND6:1/64"
    box_start ul
    box_exec ul sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
}

wire() { # BRIDGE ADDRESS4 ADDRESS6
    local ns
    ns=$(netns ul)
    ip -n "$ns" link add "$1" type bridge
    ip -n "$ns" link set "$1" up
    [ "$FAMILY" = ipv6 ] || ip -n "$ns" addr add "$2" dev "$1"
    ip -n "$ns" addr add "$3" dev "$1" nodad
}

control_plane_up() {
    mkdir -p "$STATE/etcd"
    # The cluster is thrown away with the machine's power: no fsync.
    part_start "$CONTROL" etcd etcd --data-dir "$STATE/etcd" --unsafe-no-fsync --log-level warn --name "$NAME" \
        --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
        --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
        --initial-cluster "$NAME=http://127.0.0.1:2380"
    apiserver_up
    local credentials=() masks=(--node-cidr-mask-size-ipv4=24 --node-cidr-mask-size-ipv6=64) kubeconfig=$CONF/controller-manager.kubeconfig
    [ "$FAMILY" = dual ] || masks=(--node-cidr-mask-size=64)
    credentials=(--kubeconfig="$kubeconfig" --authentication-kubeconfig="$kubeconfig" --authorization-kubeconfig="$kubeconfig")
    part_start "$CONTROL" kube-controller-manager kube-controller-manager "${credentials[@]}" --leader-elect=false --bind-address=127.0.0.1 \
        --use-service-account-credentials --service-account-private-key-file="$PKI/service-accounts.key" --root-ca-file="$PKI/ca.crt" \
        --cluster-signing-cert-file="$PKI/ca.crt" --cluster-signing-key-file="$PKI/ca.key" \
        --allocate-node-cidrs --cluster-cidr="$PODS" --service-cluster-ip-range="$SERVICES" "${masks[@]}" \
        --kube-api-qps=100 --kube-api-burst=200
    kubeconfig=$CONF/scheduler.kubeconfig
    credentials=(--kubeconfig="$kubeconfig" --authentication-kubeconfig="$kubeconfig" --authorization-kubeconfig="$kubeconfig")
    part_start "$CONTROL" kube-scheduler kube-scheduler "${credentials[@]}" --leader-elect=false --bind-address=127.0.0.1
}

apiserver_up() {
    part_start "$CONTROL" kube-apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
        --bind-address="$([ "$FAMILY" = dual ] && echo 0.0.0.0 || echo ::)" --advertise-address="$API_ADDRESS" --secure-port=6443 \
        --tls-cert-file="$PKI/apiserver.crt" --tls-private-key-file="$PKI/apiserver.key" --client-ca-file="$PKI/ca.crt" \
        --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$PKI/service-accounts.pub" \
        --service-account-signing-key-file="$PKI/service-accounts.key" --kubelet-certificate-authority="$PKI/ca.crt" \
        --kubelet-client-certificate="$PKI/apiserver-to-kubelet.crt" --kubelet-client-key="$PKI/apiserver-to-kubelet.key" \
        --kubelet-preferred-address-types=InternalIP --service-cluster-ip-range="$SERVICES" --profiling=false
    apiserver_ready() {
        [ -n "$(part_pid "$CONTROL" kube-apiserver)" ] || { tail -n 5 "$(part_log "$CONTROL" kube-apiserver)" >&2; die "the API server ended; its log is $(part_log "$CONTROL" kube-apiserver)"; }
        [ "$(kubectl --request-timeout=2s get --raw /readyz 2>/dev/null)" = ok ]
    }
    wait_for 60 "the API server (log: $(part_log "$CONTROL" kube-apiserver))" apiserver_ready
}

cmd_apiserver() {
    load_cluster
    case ${1:-} in
        start) apiserver_up ;;
        stop) part_stop "$CONTROL" kube-apiserver TERM 3 ;; # left alone, it waits up to a minute for its watchers
        *) die "apiserver start or stop" ;;
    esac
}

cmd_kubectl() { load_cluster; kubectl "$@"; }
cmd_helm() { load_cluster; HELM_CACHE_HOME=$STATE/helm HELM_CONFIG_HOME=$STATE/helm HELM_DATA_HOME=$STATE/helm underlay helm "$@"; }
cmd_underlay() { [ $# -gt 0 ] || die "underlay which command?"; load_cluster; underlay "$@"; }

coredns_apply() {
    local policy=RequireDualStack addresses="10.96.0.10, \"fd00:96::a\""
    [ "$FAMILY" = dual ] || { policy=SingleStack addresses='"fd00:96::a"'; }
    sed -e "s|@IMAGE@|$COREDNS_IMAGE|" -e "s|@POLICY@|$policy|" -e "s|@ADDRESS@|$DNS|" -e "s|@ADDRESSES@|$addresses|" "$K8S/coredns.yaml" | kubectl apply -f - >/dev/null
}
