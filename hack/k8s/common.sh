# Paths, addresses and small helpers of hack/kubernetes. Sourced, never run.
# shellcheck shell=bash disable=SC2034

K8S=$ROOT/hack/k8s
. "$K8S/versions"

# Standard error, or a copy of it that a command's own redirection does not reach (see cmd_up).
ERRORS=2
say() { echo "hack/kubernetes: $*" >&$ERRORS; }
# What goes on running must not hold the caller's standard error open.
drop_errors() { [ $ERRORS = 2 ] || exec {ERRORS}>&-; }
die() { say "$@"; exit 1; }

# The cluster's own names. Every namespace, cgroup and folder of it starts with NAME; two names share nothing.
set_name() {
    [[ $1 =~ ^[a-z][a-z0-9-]{0,30}$ ]] || die "a cluster's name is up to 31 of a-z, 0-9 and -, and starts with a letter: '$1' is not"
    NAME=$1
    STATE=${TMPDIR:-/tmp}/meshd-kubernetes-$NAME
    PKI=$STATE/pki CONF=$STATE/conf LOGS=$STATE/logs NODES=$STATE/nodes
    ADMIN=$CONF/admin.kubeconfig
}

# The underlay: node X has 10.200.0.(10+X) and fd00:200::(16+X), the machine between them has .1.
UNDERLAY4=10.200.0 UNDERLAY6=fd00:200:
SECOND4=10.201.0 SECOND6=fd00:201:
PODS4=10.244.0.0/14 PODS6=fd00:244::/48
SERVICES4=10.96.0.0/16 SERVICES6=fd00:96::/112
node_host4() { echo $((10 + ${1#n})); }
node_host6() { printf ':%x' $((16 + ${1#n})); }
node4() { echo "$UNDERLAY4.$(node_host4 "$1")"; }
node6() { echo "$UNDERLAY6$(node_host6 "$1")"; }

# What depends on the IP family, and on where the control plane runs: in the box "ul", beside the nodes' wire, or on a
# node of its own, n0. Both are remembered by the cluster.
set_family() { # dual|ipv6 ul|n0
    FAMILY=$1 CONTROL=$2
    case $FAMILY in
        dual)
            API_ADDRESS=$UNDERLAY4.1
            [ "$CONTROL" = ul ] || API_ADDRESS=$(node4 "$CONTROL")
            API=https://$API_ADDRESS:6443 DNS=10.96.0.10
            PODS=$PODS4,$PODS6 SERVICES=$SERVICES4,$SERVICES6
            ;;
        ipv6)
            API_ADDRESS=$UNDERLAY6:1
            [ "$CONTROL" = ul ] || API_ADDRESS=$(node6 "$CONTROL")
            API="https://[$API_ADDRESS]:6443" DNS=fd00:96::a
            PODS=$PODS6 SERVICES=$SERVICES6
            ;;
        *) die "--family is dual or ipv6, not '$FAMILY'" ;;
    esac
}

# Reads what `up` wrote about the running cluster.
load_cluster() {
    [ -r "$STATE/cluster" ] || die "no cluster '$NAME' is up (looked for $STATE/cluster): hack/kubernetes up --nodes 2"
    CONTROL=ul
    . "$STATE/cluster"
    set_family "$FAMILY" "$CONTROL"
    find_bin
}

node_names() {
    [ "$CONTROL" = ul ] || echo "$CONTROL"
    seq -f 'n%g' 1 "$COUNT"
}
known_node() {
    # Not grep -q: it ends with the first line, and whoever writes the others fails.
    node_names | grep -xF -- "$1" >/dev/null || die "no node '$1': there are $(node_names | xargs)"
}

# wait_for SECONDS WHAT CMD...: polls until the command succeeds; says what did not come.
wait_for() {
    local limit=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || { say "waited in vain for: $what"; return 1; }
        sleep 0.1
    done
}

# need COMMAND PACKAGE: collects what is missing, so that one message names all of it.
MISSING=()
need() { command -v "$1" >/dev/null || MISSING+=("$2 (for $1)"); }
need_all() {
    [ ${#MISSING[@]} = 0 ] && return
    say "missing Debian packages: $(IFS=,; echo "${MISSING[*]}" | sed 's/,/, /g')"
    die "hack/setup --kubernetes installs them"
}
