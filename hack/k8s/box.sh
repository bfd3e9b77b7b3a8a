# Boxes: a box is a set of namespaces with an init of its own, in which parts run. The control plane is the box "ul"
# (the underlay), each node is a box. Killing a box's init ends all of its processes, pods' too, and drops its mounts,
# so that nothing has to be found and unmounted one by one. Sourced by hack/kubernetes.
# shellcheck shell=bash

netns() { echo "$NAME-$1"; }

# The box's init as this machine's process number; empty where it does not run (or the number is another's by now).
box_init() {
    local pid
    pid=$(cat "$NODES/$1/run/init.pid" 2>/dev/null) || return 0
    [ "$(readlink "/proc/$pid/ns/net" 2>/dev/null)" = "net:[$(stat -L -c %i "/run/netns/$(netns "$1")" 2>/dev/null)]" ] && echo "$pid" || true
}

box_start() { # BOX
    local box=$1 log=$LOGS/$1-init.log
    rm -rf "$NODES/$box/run"
    mkdir -p "$NODES/$box/run"
    (
        cgroup_join
        drop_errors
        exec setsid nsenter --net="/run/netns/$(netns "$box")" unshare --fork --kill-child --pid --mount --uts --ipc --propagation private \
            bash "$K8S/box-init" "$NODES/$box" "$box" "$NAME" >>"$log" 2>&1 </dev/null
    ) &
    disown
    wait_for 20 "the namespaces of $box (log: $log)" test -e "$NODES/$box/run/ready" || { tail -n 5 "$log" >&2; return 1; }
}

box_stop() { # BOX: waits until all of its processes are gone
    local init
    init=$(box_init "$1")
    [ -n "$init" ] || return 0
    kill -9 "$init" 2>/dev/null || true
    wait_for 20 "the end of $1's processes" box_gone "$1"
}
box_gone() { [ -z "$(ip netns pids "$(netns "$1")" 2>/dev/null)" ]; }

# Runs a command in the box. `ip netns exec` would not do: it hides the cgroups.
box_exec() {
    local init box=$1
    shift
    init=$(box_init "$box")
    [ -n "$init" ] || die "$box does not run"
    nsenter -t "$init" -m -u -i -n -p -- env "PATH=$BIN:$PATH" "$@"
}

# A part is a program that goes on running in a box, with a log.
part_start() { # BOX PART CMD...
    local box=$1 part=$2
    shift 2
    [ -z "$(part_pid "$box" "$part")" ] || return 0
    rm -f "$NODES/$box/run/$part.pid"
    (
        drop_errors
        # shellcheck disable=SC2016
        box_exec "$box" setsid -f sh -c 'echo $$ >"$1"; log=$2; shift 2; exec "$@" >>"$log" 2>&1 </dev/null' \
            sh "$NODES/$box/run/$part.pid" "$(part_log "$box" "$part")" "$@"
    )
    # setsid does not wait: whoever looks before the shell has become the program would take it for ended.
    part_began() {
        local pid
        pid=$(cat "$NODES/$box/run/$part.pid" 2>/dev/null) && [ -n "$pid" ] \
            && [ "$(cat "/proc/$(box_init "$box")/root/proc/$pid/comm" 2>/dev/null)" != sh ]
    }
    wait_for 20 "the start of $box $part" part_began
}

part_log() {
    case $2 in
        etcd | kube-apiserver | kube-controller-manager | kube-scheduler) echo "$LOGS/$2.log" ;;
        *) echo "$LOGS/$1-$2.log" ;;
    esac
}

# The part's process number inside the box; empty where it does not run.
part_pid() {
    local pid init comm
    init=$(box_init "$1")
    pid=$(cat "$NODES/$1/run/$2.pid" 2>/dev/null) || return 0
    [ -n "$init" ] && [ -n "$pid" ] && comm=$(cat "/proc/$init/root/proc/$pid/comm" 2>/dev/null) || return 0
    case $2 in "$comm"*) echo "$pid" ;; esac # the kernel keeps 15 letters of a name
}

part_stop() { # BOX PART [SIGNAL [SECONDS]]: waits for its end; what takes longer than that (15 s) is killed
    local pid box=$1 part=$2 signal=${3:-TERM}
    pid=$(part_pid "$box" "$part")
    [ -n "$pid" ] || return 0
    nsenter -t "$(box_init "$box")" -p -- kill "-$signal" "$pid" 2>/dev/null || true
    part_ended() { [ -z "$(part_pid "$box" "$part")" ]; }
    wait_for "${4:-15}" "the end of $box $part" part_ended 2>/dev/null && return
    nsenter -t "$(box_init "$box")" -p -- kill -KILL "$pid" 2>/dev/null || true
    wait_for 5 "the end of $box $part after a kill" part_ended
}

# Control groups. Version 1 has a hierarchy a controller, version 2 one for all. All processes that `up` starts are in
# one group, so that `down` finds them however far they came; the pods of a node are in the node's group.
CGROUP=/sys/fs/cgroup
if [ -e $CGROUP/cgroup.controllers ]; then
    HIERARCHIES=(.) PROCESSES=.
else
    HIERARCHIES=(cpu cpuacct cpuset memory devices freezer blkio pids systemd) PROCESSES=pids
fi

cgroup_make() { # PATH below the root of every hierarchy
    local hierarchy file folder
    for hierarchy in "${HIERARCHIES[@]}"; do
        folder=$CGROUP/$hierarchy/$1
        mkdir -p "$folder"
        if [ "$hierarchy" = . ]; then # what shall be limited below must be handed down
            echo '+cpu +cpuset +memory +pids +io' >"$(dirname "$folder")/cgroup.subtree_control"
        fi
    done
    [ "$PROCESSES" = pids ] || return 0
    for file in cpus mems; do cat "$CGROUP/cpuset/cpuset.$file" >"$CGROUP/cpuset/$1/cpuset.$file"; done
}
# All pods of a cluster together would get no more of a busy machine than one process outside.
cgroup_weigh() {
    local file
    for file in "$CGROUP/cpu/$NAME/cpu.shares:16384" "$CGROUP/$NAME/cpu.weight:1000"; do
        [ ! -e "${file%:*}" ] || echo "${file##*:}" >"${file%:*}"
    done
}
cgroup_join() { echo "$BASHPID" >"$CGROUP/$PROCESSES/$NAME/processes/cgroup.procs"; }
cgroup_leave() { echo "$BASHPID" >"$CGROUP/$PROCESSES/cgroup.procs"; }
cgroup_processes() {
    local hierarchy
    for hierarchy in "${HIERARCHIES[@]}"; do
        [ ! -d "$CGROUP/$hierarchy/$NAME" ] || find "$CGROUP/$hierarchy/$NAME" -name cgroup.procs -exec cat {} + 2>/dev/null || true
    done | sort -un
}
# kubelet's own cgroup is in other hierarchies too (it makes groups in all of them, unified beside version 1 as well).
cgroup_folders() { ls -d "$CGROUP/$NAME" "$CGROUP"/*/"$NAME" 2>/dev/null || true; }
cgroup_remove() {
    local folder
    for folder in $(cgroup_folders); do find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || true; done
}
