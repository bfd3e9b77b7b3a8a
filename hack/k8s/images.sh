# Makes the images that a cluster starts with, without a registry and without Docker: our own binaries, and Debian
# packages unpacked into a folder (not installed). Sourced by hack/kubernetes.
# shellcheck shell=bash

build_images() {
    local suite=$1
    mkdir -p "$IMAGES"
    [ -e "$IMAGES/pause.tar" ] || pause_image
    [ -e "$IMAGES/coredns.tar" ] || coredns_image
    [ -e "$IMAGES/tools.tar" ] || tools_image
    [ "$suite" = 0 ] || [ -e "$IMAGES/e2e.tar" ] || suite_images
}

image() { # FILE SPEC
    say "making image $1"
    python3 "$K8S/oci.py" "$IMAGES/$1" "$2"
}

# What holds a pod's namespaces: waits, reaps what is handed to it, and ends when told to.
pause_image() {
    local c
    c=$(mktemp -d "$BUILT/new.XXXXXX")
    cat >"$c/pause.c" <<'C'
#include <signal.h>
#include <sys/wait.h>

int main(void) {
    sigset_t set;
    int sig = SIGCHLD;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, 0);
    while (sig == SIGCHLD) {
        while (waitpid(-1, 0, WNOHANG) > 0) {}
        sigwait(&set, &sig);
    }
    return 0;
}
C
    gcc -Os -static -s -o "$c/pause" "$c/pause.c"
    # The suite's images take it from here. First, because pause.tar says that both are there.
    cp "$c/pause" "$IMAGES/pause.new"
    mv "$IMAGES/pause.new" "$IMAGES/pause"
    image pause.tar "{\"layers\": {\"pause\": {\"files\": {\"/pause\": \"$c/pause\"}}},
        \"images\": [{\"name\": \"$PAUSE_IMAGE\", \"layers\": [\"pause\"], \"entrypoint\": [\"/pause\"]}]}"
    rm -rf "$c"
}

coredns_image() {
    image coredns.tar "{\"layers\": {\"coredns\": {\"files\": {\"/coredns\": \"$BIN/coredns\"}}},
        \"images\": [{\"name\": \"$COREDNS_IMAGE\", \"layers\": [\"coredns\"], \"entrypoint\": [\"/coredns\"]}]}"
}

tools_image() {
    local tree
    tree=$(mktemp -d "$BUILT/new.XXXXXX")
    debian_tree "$tree" "$TOOLS_PACKAGES"
    image tools.tar "{\"layers\": {\"debian\": {\"tree\": \"$tree\"}, \"agnhost\": {\"files\": {\"/usr/bin/agnhost\": \"$BIN/agnhost\"}}},
        \"images\": [{\"name\": \"$TOOLS_IMAGE\", \"layers\": [\"debian\", \"agnhost\"], \"cmd\": [\"agnhost\", \"pause\"]}]}"
    rm -rf "$tree"
}

# debian_tree FOLDER PACKAGES: the packages and what they depend on, of the release that this machine runs. apt gets
# folders of its own, so that neither its lists nor what is installed here plays a part, and no root is needed.
debian_tree() {
    local tree=$1 apt deb options
    command -v apt-get >/dev/null || die "apt-get is missing: the test images are made of Debian packages"
    apt=$(mktemp -d "$BUILT/new.XXXXXX")
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/state/status"
    options=(-qq -o "Dir::State=$apt/state" -o "Dir::State::status=$apt/state/status" -o "Dir::Cache=$apt/cache"
        -o APT::Sandbox::User= -o APT::Install-Recommends=false -o Acquire::Languages=none -o Acquire::Retries=3)
    say "unpacking Debian packages: ${2//$'\n'/ }"
    # shellcheck disable=SC2086
    if ! { apt-get "${options[@]}" update && apt-get "${options[@]}" install -y --download-only $2; } >>"$BUILT/build.log" 2>&1; then
        tail -n 5 "$BUILT/build.log" >&2
        die "apt-get could not fetch packages for a test image; all of it is in $BUILT/build.log"
    fi
    mkdir -p "$tree"/usr/{bin,sbin,lib,lib64} "$tree"/{etc,proc,sys,dev,var,tmp,uploads}
    chmod 1777 "$tree/tmp"
    for deb in bin sbin lib lib64; do ln -s "usr/$deb" "$tree/$deb"; done
    for deb in "$apt"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner --keep-directory-symlink -C "$tree"
    done
    # Perl comes along for the packages' scripts alone, which do not run here.
    rm -rf "$apt" "$tree"/usr/share/{doc,man,locale,info,lintian,bug,perl*} "$tree"/usr/bin/perl* "$tree"/usr/lib/*/perl* "$tree"/usr/lib/*/libperl*

    # What the packages' scripts would have done.
    ln -sf dash "$tree/usr/bin/sh"
    ln -sf mawk "$tree/usr/bin/awk"
    ln -sf nc.openbsd "$tree/usr/bin/nc"
    for deb in iptables ip6tables iptables-save ip6tables-save iptables-restore ip6tables-restore; do
        [ ! -e "$tree/usr/sbin/xtables-nft-multi" ] || ln -sf xtables-nft-multi "$tree/usr/sbin/$deb"
    done
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$tree/etc/nsswitch.conf"
    printf 'root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$tree/etc/passwd"
    printf 'root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n' >"$tree/etc/group"
}

# The end-to-end suite asks for images by names of its own; it can list them. Each gets what its tests use of it.
suite_images() {
    local tree
    tree=$(mktemp -d "$BUILT/new.XXXXXX")
    debian_tree "$tree" "$E2E_PACKAGES"
    "$BIN/e2e.test" --list-images >"$tree.names" 2>>"$BUILT/build.log"
    image e2e.tar "$(python3 - "$tree" "$BIN" "$IMAGES/pause" "$(module_folder kubernetes k8s.io/kubernetes)" <"$tree.names" 3<&0 <<'P'
import json, os, sys
tree, built, pause, kubernetes = sys.argv[1:]
porter = kubernetes + "/test/images/agnhost/porter/localhost."
layers = {
    "debian": {"tree": tree},
    "coredns": {"files": {"/coredns": built + "/coredns"}},
    "agnhost": {"files": {"/agnhost": built + "/agnhost"}, "links": {"/agnhost-2": "agnhost"},
                "text": {"/localhost." + end: open(porter + end).read() for end in ("crt", "key")}},
    "pause": {"files": {"/pause": pause}},
    "regression": {"files": {"/regression-issue-74839": built + "/regression-issue-74839"}},
}
recipes = {
    "agnhost": {"layers": ["debian", "coredns", "agnhost"], "entrypoint": ["/agnhost"], "cmd": ["pause"]},
    "busybox": {"layers": ["debian"], "cmd": ["sh"]},
    "glibc-dns-testing": {"layers": ["debian", "coredns"], "cmd": ["bash"]},
    "nginx": {"layers": ["debian"], "cmd": ["nginx", "-g", "daemon off;"]},
    "distroless-iptables": {"layers": ["debian"]},
    "pause": {"layers": ["pause"], "entrypoint": ["/pause"]},
    "regression-issue-74839": {"layers": ["debian", "regression"], "entrypoint": ["/regression-issue-74839"]},
}
names = sorted(set(line.strip() for line in os.fdopen(3) if ":" in line))
images = [{"name": name, **recipes[kind]} for name in names if (kind := name.rsplit(":", 1)[0].rsplit("/", 1)[-1]) in recipes]
absent = set(recipes) - set(image["name"].rsplit(":", 1)[0].rsplit("/", 1)[-1] for image in images)
if absent:
    sys.exit(f"the suite lists no image for: {absent}")
print(json.dumps({"layers": layers, "images": images}))
P
)"
    rm -rf "$tree" "$tree.names"
}

module_folder() { (cd "$K8S/go/$1" && GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off go list -m -f '{{.Dir}}' "$2"); }
