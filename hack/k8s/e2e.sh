# The network part of Kubernetes' own end-to-end suite, held to a list of what passes with the reference plugins.
# Sourced by hack/kubernetes.
# shellcheck shell=bash

# What can run here beside each other. Left out: what changes the whole cluster or ends parts of it; a cloud's load
# balancers and the internet; SCTP (many kernels lack it); enforcement of policies, which meshd does not do yet;
# kube-proxy as pods; a test of DNS under load.
E2E_FOCUS='\[sig-network\]'
E2E_SKIP='\[Serial\]|\[Disruptive\]|Feature:LoadBalancer|Netpol.*NetworkPolicy between|SCTPConnectivity|Feature:Networking-|KubeProxyDaemonSetMigration|PerformanceDNS'
# What needs the cluster for itself.
E2E_SERIAL_FOCUS='\[sig-network\].*\[Serial\]'
E2E_SERIAL_SKIP='\[Disruptive\]|LoadBalancer|PerformanceDNS|KubeProxyDaemonSetMigration|configMap nameserver'
# Skips itself: wants a cloud, three nodes in zones, or kube-proxy's iptables mode.
E2E_SKIPS_ITSELF='Provider:GCE|Feature:KubeProxyNFAcct|Traffic Distribution|Topology Hints|HealthCheckNodePort correctly when ExternalTrafficPolicy'
# A few minutes' worth, for CI: pods among each other and with nodes, names, host ports, node ports.
E2E_QUICK='Granular Checks: Pods should function for|DNS should provide DNS for services|HostPort validates|functioning NodePort service'
E2E_BASELINE=$K8S/e2e-baseline.txt

cmd_e2e() {
    local focus=all report='' limit=
    while [ $# -gt 0 ]; do
        case $1 in
            --report) report=${2:?--report needs a folder}; shift 2 ;;
            --list) build_all 1; suite_names; return ;;
            *) focus=$1; shift ;;
        esac
    done
    load_cluster
    [ "$CONTROL" != ul ] || [ "$CNI_CHOICE" = reference ] || die "the suite has the API server talk to pods, so that it must be on a node: up --control-plane-node"
    build_all 1
    suite_load
    report=${report:-$STATE/e2e/$(date +%Y%m%d-%H%M%S)}
    mkdir -p "$report"
    report=$(realpath "$report")
    case $focus in
        all) ;;
        quick) limit=$E2E_QUICK ;;
        *) limit=$focus ;;
    esac
    suite_run parallel 6 "${limit:-$E2E_FOCUS}" "$E2E_SKIP"
    if [ "$focus" = all ]; then suite_run serial 1 "$E2E_SERIAL_FOCUS" "$E2E_SERIAL_SKIP"; fi
    python3 "$K8S/e2e-check.py" "$E2E_BASELINE" "$limit" "$report"/*.json | tee "$report/summary.txt"
    say "reports are in $report"
    return "${PIPESTATUS[0]}"
}

suite_load() {
    local node pids=() pid
    for node in $(node_names); do
        [ ! -e "$NODES/$node/e2e-loaded" ] || continue
        (node_import "$node" "$IMAGES/e2e.tar" && touch "$NODES/$node/e2e-loaded") & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || die "could not import the suite's images: see $LOGS"; done
}

# suite_run NAME PROCESSES FOCUS SKIP: its exit status says little, since specs outside the list may fail.
suite_run() {
    local name=$1 processes=$2 arguments pid
    arguments=(--kubeconfig="$ADMIN" --kubectl-path="$BIN/kubectl" --provider=skeleton --num-nodes="$COUNT" --node-os-distro=debian
        --cluster-ip-range="${SERVICES%%,*}" --disable-log-dump=true --dump-logs-on-failure=false --delete-namespace=true
        --delete-namespace-on-failure=true --allowed-not-ready-nodes=0 --minStartupPods=0 --prepull-images=false)
    say "running the suite ($name, $processes processes); its output goes to $report/$name.txt"
    mkdir -p "$STATE/home"
    HOME=$STATE/home underlay ginkgo run --no-color -v --procs="$processes" --timeout=2h --focus="$3" --skip="$4" \
        --json-report="$name.json" --output-dir="$report" "$BIN/e2e.test" -- "${arguments[@]}" >"$report/$name.txt" 2>&1 </dev/null &
    pid=$!
    # shellcheck disable=SC2064
    trap "kill $pid 2>/dev/null; wait $pid; exit 130" INT TERM HUP
    wait $pid || true
    trap - INT TERM HUP
    [ -s "$report/$name.json" ] || { tail -n 20 "$report/$name.txt" >&2; die "the suite ended without a report; its output is $report/$name.txt"; }
}

# The names of all specs that must pass: hack/kubernetes e2e --list >hack/k8s/e2e-baseline.txt
suite_names() {
    local folder run
    folder=$(mktemp -d)
    for run in parallel serial; do
        local focus=$E2E_FOCUS skip=$E2E_SKIP
        [ $run = parallel ] || { focus=$E2E_SERIAL_FOCUS skip=$E2E_SERIAL_SKIP; }
        "$BIN/e2e.test" --ginkgo.dry-run --ginkgo.focus="$focus" --ginkgo.skip="$skip|$E2E_SKIPS_ITSELF" \
            --ginkgo.json-report="$folder/$run.json" >/dev/null 2>&1
    done
    python3 "$K8S/e2e-check.py" --names "$folder"/*.json
    rm -rf "$folder"
}
