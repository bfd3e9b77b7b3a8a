# Builds all that a cluster runs, from pinned Go modules, into a folder named by the pins. Sourced by hack/kubernetes.
# shellcheck shell=bash

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/meshd

# The folder's name changes with the pins and the modules; a change of flags needs a new BUILD in `versions`.
find_bin() {
    local hash
    hash=$(cat "$K8S/versions" "$K8S"/go/*/go.mod "$K8S"/go/*/go.sum | sha256sum | cut -c1-12)
    BUILT=$CACHE/kubernetes-$hash
    BIN=$BUILT/bin CNI=$BUILT/cni
    hash=$(cat "$K8S/versions" "$K8S/images.sh" "$K8S/oci.py" | sha256sum | cut -c1-12)
    IMAGES=$BUILT/images-$hash
}

check_build_tools() {
    if ! command -v go >/dev/null; then
        die "Go is missing: install Go $GO or newer (https://go.dev/dl, or Debian's golang-go where it is new enough)"
    fi
    local have
    have=$(GOTOOLCHAIN=local go env GOVERSION)
    [ "$(printf '%s\n' "$GO" "${have#go}" | sort -V | head -n1)" = "$GO" ] || die "$have is too old: Kubernetes $KUBERNETES needs Go $GO or newer"
    need gcc gcc
    python3 -c 'import json, tarfile' 2>/dev/null || MISSING+=("python3 (with its standard library)")
    need pkg-config pkg-config
    need flock util-linux
    need dpkg-deb dpkg
    [ -e /usr/include/seccomp.h ] || MISSING+=("libseccomp-dev (for runc)")
    need_all
}

# go_build MODULE FOLDER [FLAG...] -- OUTPUT=PACKAGE...: builds what is not there yet, under another name first, so
# that what has its name is whole.
go_build() {
    local module=$1 folder=$2 flags=() names=() packages=() new
    shift 2
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    for pair in "$@"; do
        [ -x "$folder/${pair%%=*}" ] || { names+=("${pair%%=*}"); packages+=("${pair#*=}"); }
    done
    [ ${#names[@]} -gt 0 ] || return 0
    say "building ${names[*]}"
    new=$(mktemp -d "$BUILT/new.XXXXXX")
    if [ ${#packages[@]} = 1 ]; then
        run_go "$module" build "${flags[@]}" -o "$new/${names[0]}" "${packages[@]}"
    else
        run_go "$module" build "${flags[@]}" -o "$new/" "${packages[@]}" # many at once: they share most of their parts
    fi
    for name in "${names[@]}"; do mv "$new/$name" "$folder/$name"; done
    rmdir "$new"
}

run_go() {
    local module=$1
    shift
    (cd "$K8S/go/$module" && GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=${CGO_ENABLED:-0} go "$@") >>"$BUILT/build.log" 2>&1 && return
    tail -n 20 "$BUILT/build.log" >&2
    die "go $1 in hack/k8s/go/$module failed; all of it is in $BUILT/build.log"
}

# Kubernetes learns its own version from the linker; without it all parts claim v0.0.0.
kubernetes_ldflags() {
    local at=k8s.io/component-base/version
    echo "-s -w -X $at.gitVersion=$KUBERNETES -X $at.gitMajor=1 -X $at.gitMinor=$(echo "$KUBERNETES" | cut -d. -f2) -X k8s.io/client-go/pkg/version.gitVersion=$KUBERNETES"
}

build_commands() {
    local k=k8s.io/kubernetes c=github.com/containerd/containerd/v2/cmd p=github.com/containernetworking/plugins/plugins
    go_build kubernetes "$BIN" -ldflags "$(kubernetes_ldflags)" -- \
        kube-apiserver=$k/cmd/kube-apiserver kube-controller-manager=$k/cmd/kube-controller-manager \
        kube-scheduler=$k/cmd/kube-scheduler kubelet=$k/cmd/kubelet kube-proxy=$k/cmd/kube-proxy kubectl=$k/cmd/kubectl
    go_build kubernetes "$BIN" -ldflags '-s -w' -- etcd=go.etcd.io/etcd/server/v3
    go_build kubernetes "$BIN" -ldflags '-s -w' -- agnhost=$k/test/images/agnhost
    go_build containerd "$BIN" -trimpath -tags no_btrfs,no_zfs,no_devmapper,no_aufs -ldflags '-s -w' -- \
        containerd=$c/containerd containerd-shim-runc-v2=$c/containerd-shim-runc-v2 ctr=$c/ctr
    # Without the seccomp tag every pod fails, and seccomp needs C.
    CGO_ENABLED=1 go_build runc "$BIN" -trimpath -tags 'seccomp netgo osusergo' -ldflags '-s -w -extldflags -static' -- \
        runc=github.com/opencontainers/runc
    go_build plugins "$CNI" -trimpath -ldflags '-s -w' -- bridge=$p/main/bridge loopback=$p/main/loopback \
        portmap=$p/meta/portmap tuning=$p/meta/tuning bandwidth=$p/meta/bandwidth firewall=$p/meta/firewall \
        host-local=$p/ipam/host-local
    go_build coredns "$BIN" -trimpath -ldflags '-s -w' -- coredns=github.com/coredns/coredns
    go_build helm "$BIN" -trimpath -ldflags "-s -w -X helm.sh/helm/v3/internal/version.version=$HELM" -- helm=helm.sh/helm/v3/cmd/helm
}

# The end-to-end suite, ginkgo to run it beside itself, and one of its test programs.
build_suite() {
    local k=k8s.io/kubernetes
    go_build kubernetes "$BIN" -ldflags '-s -w' -- regression-issue-74839=$k/test/images/regression-issue-74839
    go_build kubernetes "$BIN" -- ginkgo=github.com/onsi/ginkgo/v2/ginkgo
    [ -x "$BIN/e2e.test" ] && return
    say "building e2e.test"
    run_go kubernetes test -c -vet=off -ldflags "$(kubernetes_ldflags)" -o "$BUILT/new.e2e.test" $k/test/e2e
    mv "$BUILT/new.e2e.test" "$BIN/e2e.test"
}

# The modules must ask for what `versions` says: else the pins would be in two places.
check_pins() {
    local line
    while read -r module path version; do
        grep -Eq "^(require )?[[:space:]]*$path $version( |\$)" "$K8S/go/$module/go.mod" && continue
        line=$(grep -E "$path v" "$K8S/go/$module/go.mod" | head -n1 | xargs)
        die "hack/k8s/versions wants $path $version, hack/k8s/go/$module/go.mod has '$line': run hack/kubernetes pin"
    done < <(pins)
}

pins() {
    cat <<P
kubernetes k8s.io/kubernetes $KUBERNETES
kubernetes go.etcd.io/etcd/server/v3 $ETCD
containerd github.com/containerd/containerd/v2 $CONTAINERD
runc github.com/opencontainers/runc $RUNC
plugins github.com/containernetworking/plugins $CNI_PLUGINS
coredns github.com/coredns/coredns $COREDNS
helm helm.sh/helm/v3 $HELM
P
}

build_all() {
    local suite=$1 fd
    find_bin
    if built "$suite"; then return; fi
    check_build_tools
    check_pins
    mkdir -p "$BIN" "$CNI"
    exec {fd}>"$BUILT/lock"
    flock -n "$fd" || { say "another build is running: waiting for it"; flock "$fd"; }
    rm -rf "$BUILT"/new.*
    [ -e "$BIN/helm" ] || say "the first build takes 15 to 20 minutes on two cores; later ones find it in $BUILT"
    build_commands
    [ "$suite" = 0 ] || build_suite
    build_images "$suite"
    exec {fd}>&-
}

built() {
    local file files=("$BIN"/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl,etcd,agnhost,containerd,containerd-shim-runc-v2,ctr,runc,coredns,helm}
        "$CNI"/{bridge,loopback,portmap,tuning,bandwidth,firewall,host-local} "$IMAGES"/{pause,coredns,tools}.tar)
    [ "$1" = 0 ] || files+=("$BIN"/{e2e.test,ginkgo,regression-issue-74839} "$IMAGES/e2e.tar")
    for file in "${files[@]}"; do [ -e "$file" ] || return 1; done
}

cmd_build() {
    local suite=0
    case ${1:-} in
        '') ;;
        --e2e) suite=1 ;;
        *) die "build takes --e2e or nothing" ;;
    esac
    build_all $suite
    say "all there: $BUILT"
}

cmd_bin() {
    find_bin
    built 0 || die "not built yet: hack/kubernetes build"
    echo "$BIN"
}

# Writes the Go modules from `versions`. k8s.io/kubernetes asks for its own staging modules at v0.0.0, so each is
# replaced by the release of the same number.
cmd_pin() {
    local staging=v0.${KUBERNETES#v1.} k=k8s.io/kubernetes p=github.com/containernetworking/plugins/plugins mod name
    export GOFLAGS=-mod=mod GOTOOLCHAIN=local GOWORK=off
    fresh() { mkdir -p "$K8S/go/$1"; cd "$K8S/go/$1"; printf 'module meshd.dev/hack/k8s/%s\n\ngo %s.0\n' "$1" "$GO" >go.mod; rm -f go.sum; }
    (
        fresh kubernetes
        mod=$(go mod download -json "$k@$KUBERNETES" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p')
        awk '$1 ~ /^k8s\.io\// && $2 == "v0.0.0" { print $1 }' "$mod" | sort -u | while read -r name; do go mod edit -replace "$name=$name@$staging"; done
        go get -tool $k/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubelet,kube-proxy,kubectl}@"$KUBERNETES" go.etcd.io/etcd/server/v3@"$ETCD"
        go mod edit -tool=github.com/onsi/ginkgo/v2/ginkgo -tool=$k/test/images/agnhost -tool=$k/test/images/regression-issue-74839
        go list -deps tool >/dev/null
        go list -deps -test $k/test/e2e >/dev/null
    )
    (fresh containerd; go get -tool github.com/containerd/containerd/v2/cmd/{containerd,containerd-shim-runc-v2,ctr}@"$CONTAINERD")
    (fresh runc; go get -tool github.com/opencontainers/runc@"$RUNC")
    (fresh plugins; go get -tool $p/{main/{bridge,loopback},meta/{portmap,tuning,bandwidth,firewall},ipam/host-local}@"$CNI_PLUGINS")
    (fresh coredns; go get -tool github.com/coredns/coredns@"$COREDNS")
    (fresh helm; go get -tool helm.sh/helm/v3/cmd/helm@"$HELM")
    check_pins
}
