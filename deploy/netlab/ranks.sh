# Commands on the lab's hosts, and how Open MPI gets onto them. Sourced by netlab.
# shellcheck shell=bash disable=SC2154 # lab, state and net are netlab's

mca_choices() { # "NAME VALUE" per line
    cat <<TEXT
plm rsh
plm_rsh_agent $state/rsh
plm_rsh_no_tree_spawn 1
oob_tcp_if_include $net.0/24
btl_tcp_if_include $net.0/24
pml ob1
btl self,vader,tcp
osc ^ucx
mpi_yield_when_idle 1
hwloc_base_binding_policy none
TEXT
}

# What makes the lab reachable; the other choices are a user's to change.
is_needed() { # NAME
    [[ $1 == plm* || $1 == *_if_include ]]
}

export_mpi() {
    local name value variable
    while read -r name value; do
        variable=OMPI_MCA_$name
        if is_needed "$name" || [ -z "${!variable+set}" ]; then
            export "$variable=$value"
        fi
    done < <(mca_choices)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 NETLAB=$lab
}

# One per line, without those that the words after them choose otherwise.
mpirun_flags() { # ARG...
    local name value chosen=' '
    while [ $# -gt 1 ]; do
        [[ $1 != -mca && $1 != --mca ]] || chosen+="$2 "
        shift
    done
    echo --allow-run-as-root
    while read -r name value; do
        if is_needed "$name" || [[ $chosen != *" $name "* ]]; then
            printf '%s\n' --mca "$name" "$value"
        fi
    done < <(
        mca_choices
        echo orte_tmpdir_base /dev/shm
    )
}

# The cores that this process may use, one per line.
allowed_cpus() {
    local part parts
    IFS=, read -r -a parts < <(awk '/^Cpus_allowed_list/ { print $2 }' /proc/self/status)
    for part in "${parts[@]}"; do
        seq "${part%-*}" "${part#*-}"
    done
}

# A host's share of the lab's cores: a run of its own where there are enough, else one in turn. Hosts do not know of each other, and
# would all take the first ones.
cores_of() { # K
    local n cpus
    n=$(n_hosts)
    mapfile -t cpus <"$state/cpus"
    if [ "$n" -le ${#cpus[@]} ]; then
        cpus=("${cpus[@]:$(($1 * ${#cpus[@]} / n)):$((($1 + 1) * ${#cpus[@]} / n - $1 * ${#cpus[@]} / n))}")
    else
        cpus=("${cpus[$(($1 % ${#cpus[@]}))]}")
    fi
    (IFS=, && echo "${cpus[*]}")
}

enter() { # K CMD...
    local k=$1 pid folder=$PWD flags=(-n -u -i -m)
    shift
    pid=$(pid_of "h$k") || die "h$k is crashed: netlab boot h$k"
    [ "$k" -eq 0 ] || flags+=(-p)
    [ -d "/proc/$pid/root$folder" ] || folder=/
    exec nsenter -t "$pid" "${flags[@]}" --wdns="$folder" -- taskset -c "$(cores_of "$k")" "$@"
}

verb_exec() {
    local k
    need_up
    k=$(host_number "$1")
    shift
    export_mpi
    [ "$k" -ne 0 ] || enter 0 "$@"
    # A signal ends nsenter alone; the command then gets SIGTERM.
    enter "$k" setpriv --pdeathsig TERM "$@"
}

# Why ssh from h0 would not come through to host K; nothing when it would.
why_unreachable() { # K
    local k=$1 host
    pid_of "h$k" >/dev/null || echo "h$k is crashed"
    for host in h0 "h$k"; do
        [ ! -e "$state/$host.cut" ] || echo "$host is cut off"
        [ ! -e "$state/$host.hole" ] || echo "$host is a black hole"
    done
    if grep -qxE "0 $k|$k 0" "$state/blocks"; then
        echo "the link is blocked"
    fi
}

# As sshd does it: an environment of its own, the words joined for the shell. And as ssh does it: a host that does not
# answer is given up after three unanswered questions for its address, one per second.
verb_rsh() {
    local k why
    need_up
    k=$(host_number "$1")
    why=$(why_unreachable "$k" | head -n 1)
    if [ -n "$why" ]; then
        sleep 3
        echo "netlab: rsh: no route to host $1: $why" >&2
        exit 255
    fi
    shift
    enter "$k" env -i HOME="${HOME:-/root}" USER=root LOGNAME=root SHELL=/bin/sh \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c "$*"
}

verb_mpirun() {
    local hosts=$1 flags
    shift
    need_up
    read_hosts "$hosts" >/dev/null
    command -v mpirun >/dev/null || die "missing tool: mpirun (Debian package openmpi-bin)"
    mapfile -t flags < <(mpirun_flags "$@")
    export NETLAB=$lab
    enter 0 mpirun "${flags[@]}" --host "$hosts" "$@"
}

verb_mpirun_flags() {
    local flags
    mapfile -t flags < <(mpirun_flags)
    printf '%q ' "${flags[@]}" | sed 's/ $/\n/'
}

verb_hostfile() {
    local k hosts=${1:-}
    need_up
    if [ $# -eq 0 ]; then
        for ((k = 0; k < $(n_hosts); k++)); do
            hosts+=${hosts:+,}h$k
        done
    fi
    read_hosts "$hosts" | sed 's/ / slots=/'
}
