# Links of the lab: the bridge or the switch, what a link does to packets, cables. Sourced by netlab.
# shellcheck shell=bash disable=SC2154 # lab, state, root and the like are netlab's

# ---- The switch ----

find_switch() {
    local at
    if [ -n "${NETLAB_SWITCH:-}" ]; then
        [ -x "$NETLAB_SWITCH" ] || die "NETLAB_SWITCH: '$NETLAB_SWITCH' is no program"
        echo "$NETLAB_SWITCH"
        return
    fi
    for at in "${TD_BUILD:-$root/build}" "$root/build"; do
        if [ -x "$at/tensord-netlab-switch" ]; then
            echo "$at/tensord-netlab-switch"
            return
        fi
    done
    command -v tensord-netlab-switch ||
        die "the program tensord-netlab-switch is neither in $root/build nor in PATH: build it, or name it in NETLAB_SWITCH"
}

start_switch() {
    local program
    if pid_of switch >/dev/null; then
        return
    fi
    program=$(find_switch)
    rm -f "$state/switch.sock"
    NETLAB_HOLDER=$state setsid nsenter -t "$(pid_of net)" -n -- "$program" serve "$state/switch.sock" \
        </dev/null >/dev/null 2>>"$state/log" 9<&- &
    echo $! >"$state/switch.pid"
    disown
    wait_for "the switch" "$state/switch.sock"
}

stop_switch() {
    local pid i
    if pid=$(pid_of switch); then
        kill "$pid" 2>/dev/null || true
        for ((i = 0; i < 200; i++)); do
            pid_of switch >/dev/null || break
            sleep 0.01
        done
    fi
    rm -f "$state/switch.pid" "$state/switch.sock"
}

tell_switch() {
    in_switch "$(find_switch)" tell "$state/switch.sock"
}

# ---- What the links are to be, and making them so ----

has_netem() {
    if [ ! -e "$state/netem" ]; then
        if command -v tc >/dev/null && in_switch tc qdisc add dev br0 root netem delay 1us 2>/dev/null; then
            in_switch tc qdisc del dev br0 root
            echo yes >"$state/netem"
        else
            echo no >"$state/netem"
        fi
    fi
    [ "$(cat "$state/netem")" = yes ]
}

# netem knows no pairs, and its jitter lets packets overtake each other.
wanted_mode() {
    local delay jitter loss rate
    read -r delay jitter loss rate <"$state/shape"
    if [ -s "$state/pairs" ] || [ -s "$state/blocks" ]; then
        echo switch
    elif [ "$delay $jitter $loss $rate" = "0 0 0 0" ]; then
        echo bridge
    elif [ "$jitter" = 0 ] && [ "${NETLAB_SHAPER:-auto}" = auto ] && has_netem; then
        echo netem
    else
        echo switch
    fi
}

# What the switch is told; linkrules.h says what the lines mean.
switch_rules() {
    local k other delay jitter loss rate
    read -r delay jitter loss rate <"$state/shape"
    echo "rate $rate"
    echo "all $delay $jitter $loss"
    while read -r k other delay jitter loss; do
        echo "link $k $other $delay $jitter $loss"
        echo "link $other $k $delay $jitter $loss"
    done <"$state/pairs"
    sed 's/^/block /' "$state/blocks"
    for k in $(present); do
        echo "port $k $(port "$k")"
        [ -e "$state/h$k.hole" ] || continue
        for ((other = 0; other < $(n_hosts); other++)); do
            printf 'block %d %d\nblock %d %d\n' "$k" "$other" "$other" "$k"
        done
    done
}

# One ip command per line for the ports, as the mode has it. A port of no bridge leads nowhere: a black hole.
port_commands() { # MODE
    local k
    for k in $(present); do
        if [ "$1" = switch ] || [ -e "$state/h$k.hole" ]; then
            echo "link set $(port "$k") nomaster"
        else
            echo "link set $(port "$k") master br0"
        fi
        if [ -e "$state/h$k.cut" ]; then
            echo "link set $(port "$k") down"
        else
            echo "link set $(port "$k") up"
        fi
    done
}

set_netem() {
    local k delay jitter loss rate words
    read -r delay jitter loss rate <"$state/shape"
    words=(limit 100000 delay "$(awk -v n="$delay" 'BEGIN { printf "%.3fus", n / 1000 }')"
        loss "$(awk -v n="$loss" 'BEGIN { printf "%.4f%%", n / 10000 }')")
    # 24 bytes per packet: preamble, check sequence, gap.
    [ "$rate" = 0 ] || words+=(rate "${rate}bit" 24)
    for k in $(present); do
        in_switch tc qdisc replace dev "$(port "$k")" root netem "${words[@]}"
    done
}

clear_netem() {
    local k
    for k in $(present); do
        in_switch tc qdisc del dev "$(port "$k")" root 2>/dev/null || true
    done
}

# A loss takes one packet and not a bundle of them, so hosts make no bundles where there are losses.
set_bundles() {
    local k segments=65535
    # Loss is the third word of a shape and the last of a pair.
    if ! awk '(FILENAME ~ /shape$/ ? $3 : $5) > 0 { exit 1 }' "$state/shape" "$state/pairs"; then
        segments=1
    fi
    for k in $(present); do
        on_net_of "$k" ip link set eth0 gso_max_segs $segments
    done
}

# Makes the links what the files in $state say.
apply() {
    local mode was
    mode=$(wanted_mode)
    was=$(cat "$state/mode")
    [ "$mode" != switch ] || start_switch
    [ "$mode" = switch ] || stop_switch
    [ "$mode" = netem ] || [ "$was" != netem ] || clear_netem
    echo "$mode" >"$state/mode"
    port_commands "$mode" | in_switch ip -batch -
    case $mode in
    netem) set_netem ;;
    switch) switch_rules | tell_switch >/dev/null ;;
    esac
    set_bundles
}

# ---- Verbs ----

# For a verb that changes the rules: as they were, if it does not come to its end.
keep_rules() {
    local file
    for file in shape pairs blocks; do
        cp "$state/$file" "$state/$file.old"
    done
    trap restore_rules EXIT
}

restore_rules() {
    local file
    for file in shape pairs blocks; do
        mv "$state/$file.old" "$state/$file"
    done
}

apply_rules() {
    apply
    trap - EXIT
    rm -f "$state"/{shape,pairs,blocks}.old
}

read_span() { # NAME TEXT -> ns
    local factor
    [[ $2 =~ ^([0-9]{1,9}(\.[0-9]{1,9})?)(us|ms|s)$ || $2 =~ ^(0)()()$ ]] ||
        wrong "shape: got $1=$2, expected a number with us, ms or s, such as $1=50us"
    case ${BASH_REMATCH[3]} in
    us) factor=1000 ;;
    ms) factor=1000000 ;;
    *) factor=1000000000 ;;
    esac
    awk -v n="${BASH_REMATCH[1]}" -v f=$factor 'BEGIN { exit n * f > 1e10 }' ||
        wrong "shape: got $1=$2, expected at most 10s"
    awk -v n="${BASH_REMATCH[1]}" -v f=$factor 'BEGIN { printf "%.0f\n", n * f }'
}

read_loss() { # TEXT -> ppm
    local factor=1
    [[ $1 =~ ^([0-9]{1,7}(\.[0-9]{1,9})?)(%|ppm)$ || $1 =~ ^(0)()()$ ]] ||
        wrong "shape: got loss=$1, expected a number with % or ppm, such as loss=0.1% or loss=1000ppm"
    [ "${BASH_REMATCH[3]}" != % ] || factor=10000
    awk -v n="${BASH_REMATCH[1]}" -v f=$factor 'BEGIN { exit n * f > 1e6 }' ||
        wrong "shape: got loss=$1, expected at most 100%"
    awk -v n="${BASH_REMATCH[1]}" -v f=$factor 'BEGIN { printf "%.0f\n", n * f }'
}

read_rate() { # TEXT -> bits per second
    local factor
    [[ $1 =~ ^([0-9]{1,9}(\.[0-9]{1,9})?)(kbit|mbit|gbit)$ || $1 =~ ^(0)()()$ ]] ||
        wrong "shape: got rate=$1, expected a number with kbit, mbit or gbit, such as rate=1gbit"
    case ${BASH_REMATCH[3]} in
    kbit) factor=1000 ;;
    mbit) factor=1000000 ;;
    *) factor=1000000000 ;;
    esac
    awk -v n="${BASH_REMATCH[1]}" -v f=$factor 'BEGIN { exit n > 0 && (n * f < 1000 || n * f > 1e12) }' ||
        wrong "shape: got rate=$1, expected 1kbit to 1000gbit, or 0 for no limit"
    awk -v n="${BASH_REMATCH[1]}" -v f=$factor 'BEGIN { printf "%.0f\n", n * f }'
}

# Sets delay, jitter, loss and rate in the caller from NAME=VALUE words.
read_shape() {
    local word
    for word in "$@"; do
        case $word in
        delay=*) delay=$(read_span delay "${word#*=}") ;;
        jitter=*) jitter=$(read_span jitter "${word#*=}") ;;
        loss=*) loss=$(read_loss "${word#*=}") ;;
        rate=*) rate=$(read_rate "${word#*=}") ;;
        *) wrong "shape: got '$word', expected delay=, jitter=, loss= or rate=" ;;
        esac
    done
}

verb_shape() {
    local delay=0 jitter=0 loss=0 rate=0 a b
    if [ "$1" = off ]; then
        [ $# -eq 1 ] || wrong "shape off: got '$2' as well, expected nothing more"
        take_lab
        keep_rules
        echo 0 0 0 0 >"$state/shape"
        : >"$state/pairs"
    elif [[ $1 == *=* ]]; then
        read_shape "$@"
        take_lab
        keep_rules
        echo "$delay $jitter $loss $rate" >"$state/shape"
        : >"$state/pairs"
    else
        [ $# -ge 3 ] || wrong "shape: got '$*', expected 'off', NAME=VALUE words, or two hosts and such words"
        read_shape "${@:3}"
        take_lab
        read_pair shape "$1" "$2"
        [ "$rate" = 0 ] || wrong "shape: got rate for one pair, expected it only for the whole switch: it is a port's"
        keep_rules
        {
            grep -vE "^($a $b|$b $a) " "$state/pairs" || true
            echo "$a $b $delay $jitter $loss"
        } >"$state/pairs.new"
        mv "$state/pairs.new" "$state/pairs"
    fi
    apply_rules
}

read_pair() { # VERB HOST HOST: sets a and b in the caller
    a=$(host_number "$2")
    b=$(host_number "$3")
    [ "$a" != "$b" ] || wrong "$1: got h$a twice, expected two hosts"
}

verb_cut() {
    local k
    take_lab
    k=$(host_number "$1")
    need_running "$k"
    touch "$state/h$k.cut"
    apply
}

verb_blackhole() {
    local k
    take_lab
    k=$(host_number "$1")
    need_running "$k"
    touch "$state/h$k.hole"
    apply
}

verb_heal() {
    local k
    take_lab
    k=$(host_number "$1")
    need_running "$k"
    rm -f "$state/h$k.cut" "$state/h$k.hole"
    apply
}

verb_block() {
    local a b
    take_lab
    read_pair block "$@"
    keep_rules
    grep -qx "$a $b" "$state/blocks" || echo "$a $b" >>"$state/blocks"
    apply_rules
}

verb_unblock() {
    local a b
    take_lab
    read_pair unblock "$@"
    keep_rules
    { grep -vx "$a $b" "$state/blocks" || true; } >"$state/blocks.new"
    mv "$state/blocks.new" "$state/blocks"
    apply_rules
}
