# Hosts of the lab: their namespaces and processes, from `up` to `down`, and their power. Sourced by netlab.
# shellcheck shell=bash disable=SC2154 # lab, state, net and the like are netlab's

# ---- Processes ----

net_of() { # PID -> its network namespace, "net:[4026532000]"
    readlink "/proc/$1/ns/net"
}

# The processes in these network namespaces. Never those of the one in which the lab was made.
processes_in() {
    local ns outside tests=()
    outside=$(cat "$state/outside" 2>/dev/null || net_of self)
    for ns in "$@"; do
        if [ -z "$ns" ] || [ "$ns" = "$outside" ]; then
            continue
        fi
        ns=${ns/[/\\[}
        tests+=(-o -lname "${ns/]/\\]}")
    done
    [ ${#tests[@]} -gt 0 ] || return 0
    find /proc/[0-9]*/ns/net -maxdepth 0 "(" "${tests[@]:1}" ")" 2>/dev/null | cut -d/ -f3 || true
}

# Ends all processes in these network namespaces; new ones that they made meanwhile too.
kill_in() {
    local i pids
    for ((i = 0; i < 100; i++)); do
        pids=$(processes_in "$@")
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086 # one word per process
        kill -KILL $pids 2>/dev/null || true
        sleep 0.02
    done
    die "these processes of the lab do not end: ${pids//$'\n'/ }"
}

# Processes that hold a namespace of this lab, known by their environment, whether or not a file tells of them.
holders() {
    grep -slzxF "NETLAB_HOLDER=$state" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}

refuse_inside() { # VERB hK: it would end itself
    local pid
    if pid=$(pid_of "$2") && [ "$(net_of self)" = "$(net_of "$pid")" ]; then
        die "$1: this command runs on $2, which would end it: run it outside of the lab"
    fi
}

wait_for() { # WHAT FILE
    local i
    for ((i = 0; i < 500; i++)); do
        [ ! -e "$2" ] || return 0
        sleep 0.01
    done
    die "$1 did not start within 5 s: $(tail -n 3 "$state/log" 2>/dev/null)"
}

# ---- Hosts ----

# The first process of a host. It reaps what its parents left, as init does.
# shellcheck disable=SC2016 # the inner shell expands the names
host_main='set -e
echo "$1" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mount --bind "$2/hosts" /etc/hosts
: >"$2/$1.up"
trap : TERM
while :; do sleep 1000 & wait $! || :; done'

# Begins to start host K. h0 shares the processes of the machine: from there others are entered, and a signal to
# `netlab exec h0` reaches the command itself.
start_host() {
    local k=$1 separate=(--pid --fork --kill-child=KILL --mount-proc)
    [ "$k" -ne 0 ] || separate=()
    rm -f "$state/h$k.up"
    NETLAB_HOLDER=$state setsid unshare --net --uts --ipc --mount "${separate[@]}" \
        bash -c "$host_main" "netlab-$lab" "h$k" "$state" </dev/null >/dev/null 2>>"$state/log" 9<&- &
    echo $! >"$state/h$k.outer"
    disown
}

# No address of its own accord, and so no packet that nobody sent.
no_ipv6_on() { # DEVICE
    [ ! -e /proc/sys/net/ipv6 ] || echo "link set $1 addrgenmode none"
}

# Waits for it and plugs its NIC into the switch.
join_host() {
    local k=$1 pid mac
    wait_for "h$k" "$state/h$k.up"
    pid=$(cat "$state/h$k.outer")
    if [ "$k" -ne 0 ]; then
        # The file has no newline, which read takes for a failure.
        read -r pid _ <"/proc/$pid/task/$pid/children" || [ -n "$pid" ] || die "h$k ended at once: $(tail -n 3 "$state/log")"
    fi
    echo "$pid" >"$state/h$k.pid"
    rm -f "$state/h$k.up" "$state/h$k.outer"
    mac=$(printf '02:6e:6c:00:00:%02x' "$k")
    ip link add "$(port "$k")" netns "$(pid_of net)" type veth peer name eth0 netns "$pid"
    no_ipv6_on "$(port "$k")" | in_switch ip -batch -
    on_net_of "$k" ip -batch - <<TEXT
link set lo up
link set eth0 address $mac
$(no_ipv6_on eth0)
addr add $net.$((10 + k))/24 broadcast $net.255 dev eth0
link set eth0 up
TEXT
}

start_switch_net() {
    local pid i
    NETLAB_HOLDER=$state setsid unshare --net sleep infinity </dev/null >/dev/null 2>>"$state/log" 9<&- &
    pid=$!
    disown
    for ((i = 0; i < 500; i++)); do
        [ "$(net_of $pid 2>/dev/null || net_of self)" = "$(net_of self)" ] || break
        sleep 0.01
    done
    [ $i -lt 500 ] || die "no network namespace within 5 s: $(tail -n 3 "$state/log")"
    echo $pid >"$state/net.pid"
    in_switch ip -batch - <<TEXT
link add br0 type bridge stp_state 0 mcast_snooping 0
$(no_ipv6_on br0)
link set br0 up
TEXT
}

# What Open MPI starts daemons with. A path without blanks, and the lab's name in it, whatever the environment says.
write_agent() {
    printf '#!/bin/sh\nNETLAB=%s exec %q rsh "$@"\n' "$lab" "$self" >"$state/rsh"
    chmod 755 "$state/rsh"
}

write_hosts() {
    local k
    echo "127.0.0.1 localhost"
    echo "::1 localhost ip6-localhost ip6-loopback"
    for ((k = 0; k < $1; k++)); do
        echo "$net.$((10 + k)) h$k"
    done
}

undo_up() {
    local status=$?
    trap - EXIT
    tear_down || true
    exit $((status > 0 ? status : 1))
}

verb_up() {
    local n=$1 k
    if ! [[ $n =~ ^[1-9][0-9]?$ ]] || [ "$n" -lt 2 ] || [ "$n" -gt "$max_hosts" ]; then
        wrong "up: got '$n', expected a number of hosts from 2 to $max_hosts"
    fi
    take_lock
    [ ! -e "$state" ] || die "lab '$lab' is already up with $(n_hosts) hosts: netlab down, or another name in NETLAB"
    unshare --net --uts --ipc --mount --pid --fork true ||
        die "this machine does not permit namespaces to root (a container without CAP_SYS_ADMIN?)"
    trap undo_up EXIT
    mkdir -p "$state_root"
    mkdir "$state"
    net_of self >"$state/outside"
    echo "$n" >"$state/n"
    allowed_cpus >"$state/cpus"
    echo bridge >"$state/mode"
    echo 0 0 0 0 >"$state/shape"
    : >"$state/pairs"
    : >"$state/blocks"
    write_hosts "$n" >"$state/hosts"
    write_agent
    start_switch_net
    for ((k = 0; k < n; k++)); do
        start_host "$k"
    done
    for ((k = 0; k < n; k++)); do
        join_host "$k"
    done
    apply
    echo "lab '$lab' is up: h0 to h$((n - 1)), $net.10 to $net.$((9 + n))"
    trap - EXIT
}

# Ends everything, known by the marks in the processes' environments, whatever the files say: `up` may have been killed.
tear_down() {
    local i pid pids spaces=()
    for ((i = 0; i < 100; i++)); do
        for pid in $(holders); do
            spaces+=("$(net_of "$pid" 2>/dev/null || true)")
        done
        pids=$(holders && processes_in "${spaces[@]}")
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086 # one word per process
        kill -KILL $pids 2>/dev/null || true
        sleep 0.02
    done
    [ -z "$pids" ] || die "these processes of the lab do not end: ${pids//$'\n'/ }"
    rm -rf "$state"
    rmdir "$state_root" 2>/dev/null || true
}

verb_down() {
    take_lab
    refuse_inside down h0
    tear_down
}

# ---- Power ----

need_running() { # K
    pid_of "h$1" >/dev/null || die "h$1 is crashed: netlab boot h$1"
}

verb_crash() {
    local k pid ns
    take_lab
    k=$(host_number "$1")
    need_running "$k"
    refuse_inside crash "h$k"
    pid=$(pid_of "h$k")
    ns=$(net_of "$pid")
    # First the link, so that no packet of the dying processes comes through.
    in_switch ip link del "$(port "$k")"
    kill_in "$ns"
    rm -f "$state/h$k.pid" "$state/h$k.cut" "$state/h$k.hole"
    apply
}

verb_boot() {
    local k
    take_lab
    k=$(host_number "$1")
    if pid_of "h$k" >/dev/null; then
        die "h$k is running: netlab crash h$k"
    fi
    # One whose first process was killed from outside left its files, and h0 may have left its link.
    in_switch ip link del "$(port "$k")" 2>/dev/null || true
    rm -f "$state/h$k.pid" "$state/h$k.cut" "$state/h$k.hole"
    start_host "$k"
    join_host "$k"
    apply
}
