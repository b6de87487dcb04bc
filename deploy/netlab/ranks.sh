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

export_mpi() {
    local name value
    while read -r name value; do
        export "OMPI_MCA_$name=$value"
    done < <(mca_choices)
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 NETLAB=$lab
}

mpirun_flags() { # one per line
    local name value
    echo --allow-run-as-root
    while read -r name value; do
        printf '%s\n' --mca "$name" "$value"
    done < <(mca_choices)
    printf '%s\n' --mca orte_tmpdir_base /dev/shm
}

enter() { # K CMD...
    local k=$1 pid folder=$PWD flags=(-n -u -i -m)
    shift
    pid=$(pid_of "h$k") || die "h$k is crashed: netlab boot h$k"
    [ "$k" -eq 0 ] || flags+=(-p)
    [ -d "/proc/$pid/root$folder" ] || folder=/
    exec nsenter -t "$pid" "${flags[@]}" --wdns="$folder" -- "$@"
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

# As sshd does it: an environment of its own, the words joined for the shell.
verb_rsh() {
    local k
    need_up
    k=$(host_number "$1")
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
    mapfile -t flags < <(mpirun_flags)
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
