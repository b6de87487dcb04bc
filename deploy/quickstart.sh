#!/bin/bash
# From a fresh clone to an answer: installs what is missing, builds, serves the model that ships on two local CPU ranks
# and asks it one question over HTTP.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tensord=$root/build/tensord
state=${XDG_STATE_HOME:-${HOME:-$root/build}/.local/state}/tensord
name="tensord-tiny"
model=$root/tests/models/$name
ranks=2
question='Tell me a short story about a dog.'

usage() {
    cat <<'TEXT'
usage: deploy/quickstart.sh [--no-question] [--port N]
       deploy/quickstart.sh --stop

Starts `tensord serve` on two local CPU ranks with the model that ships, asks it one question, and leaves the server
running. --no-question only starts it; --stop stops it. Without --port the first free port from 8000 on is taken.
TEXT
}

die() {
    echo "quickstart.sh: $*" >&2
    exit 1
}

ask=yes
stop=no
port=
while [ $# -gt 0 ]; do
    case $1 in
    --stop) stop=yes ;;
    --no-question) ask=no ;;
    --port)
        [ $# -ge 2 ] || die "--port has no value, expected a number from 1 to 65535"
        port=$2
        shift
        ;;
    --port=*) port=${1#*=} ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        usage >&2
        die "unknown argument '$1'"
        ;;
    esac
    shift
done
if [ -n "$port" ] && ! { [[ $port =~ ^[0-9]{1,5}$ ]] && [ "$port" -ge 1 ] && [ "$port" -le 65535 ]; }; then
    die "--port: got '$port', expected a number from 1 to 65535"
fi

# The server's process id when the one that we started still runs, else nothing. A pid can be taken over by another
# program after a restart of the machine: its command line must be a tensord's.
running_pid() {
    local pid
    pid=$(cat "$state/server.pid" 2>/dev/null) || return 0
    if [[ $pid =~ ^[0-9]+$ && $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *'tensord serve '* ]]; then
        echo "$pid"
    fi
}

stop_server() {
    local pid i
    pid=$(running_pid)
    if [ -z "$pid" ]; then
        rm -f "$state/server.pid" "$state/server.url"
        echo "no server of this quick start is running"
        return
    fi
    kill -TERM "$pid" 2>/dev/null || true
    for ((i = 0; i < 150; i++)); do
        [ -n "$(running_pid)" ] || break
        sleep 0.1
    done
    if [ -n "$(running_pid)" ]; then
        echo "process $pid did not end within 15 s and is killed"
        kill -KILL "$pid" 2>/dev/null || true
    fi
    rm -f "$state/server.pid" "$state/server.url"
    echo "stopped (process $pid)"
}

taken() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

choose_port() {
    if [ -n "$port" ]; then
        if taken "$port"; then
            die "port $port is in use; give another --port, or none to take a free one"
        fi
        return
    fi
    for ((port = 8000; port < 8100; port++)); do
        if ! taken "$port"; then
            [ "$port" = 8000 ] || echo "port 8000 is in use, taking $port"
            return
        fi
    done
    die "no free port from 8000 to 8099; give one with --port"
}

build() {
    local log=$root/build/quickstart.log generator=()
    mkdir -p "$root/build"
    if [ ! -f "$root/build/CMakeCache.txt" ] && command -v ninja >/dev/null; then
        generator=(-G Ninja)
    fi
    echo "building (log: build/quickstart.log) ..."
    if ! { cmake -S "$root" -B "$root/build" "${generator[@]}" &&
        cmake --build "$root/build" --target tensord -j "$(nproc)"; } >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        die "the build failed; the whole log is in $log"
    fi
}

ready() {
    curl --noproxy "*" -fs -o /dev/null --max-time 2 "$1/readyz"
}

start_server() {
    local pid i
    [ -f "$model/config.json" ] || die "the model is not at $model"
    mkdir -p "$state"
    choose_port
    # mpirun wants to be told that root is meant, and that two ranks may share a core.
    export OMPI_MCA_rmaps_base_oversubscribe=1
    if [ "$(id -u)" -eq 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
    setsid "$tensord" serve --model "$model" --served-model-name "$name" -n "$ranks" --host 127.0.0.1 \
        --port "$port" >"$state/server.log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$state/server.pid"
    echo "http://127.0.0.1:$port" >"$state/server.url"
    echo "starting: tensord serve --model tests/models/$name -n $ranks --port $port (process $pid)"
    for ((i = 0; i < 600; i++)); do
        if ready "http://127.0.0.1:$port"; then
            return
        fi
        if ! kill -0 "$pid" 2>/dev/null; then
            tail -n 20 "$state/server.log" >&2
            rm -f "$state/server.pid" "$state/server.url"
            die "the server ended; its log is in $state/server.log"
        fi
        sleep 0.2
    done
    tail -n 20 "$state/server.log" >&2
    die "the server is not ready after two minutes; its log is in $state/server.log"
}

# Prints what the server-sent events on stdin say as they come, then the rate. One event is one line "data: {...}".
print_stream() {
    local line text first='' last='' tokens='' ended=no
    local content='"content": *"(([^"\\]|\\.)*)"' usage='"completion_tokens": *([0-9]+)' error='"error": *\{'
    while IFS= read -r line; do
        line=${line%$'\r'}
        [[ $line == 'data: [DONE]' ]] && ended=yes
        if [[ $line =~ $error ]]; then
            printf '%s\n' "$line" >&2
            return 1
        fi
        if [[ $line =~ $content && -n ${BASH_REMATCH[1]} ]]; then
            text=${BASH_REMATCH[1]//\\\//\/} # JSON may write \/ for /, printf %b knows the other escapes
            text=${text//\\\"/\"}
            printf '%b' "$text"
            last=${EPOCHREALTIME/,/.} # some locales write a comma
            [ -n "$first" ] || first=$last
        fi
        [[ $line =~ $usage ]] && tokens=${BASH_REMATCH[1]}
    done
    printf '\n\n'
    [ $ended = yes ] || return 1
    awk -v first="${first:-0}" -v last="${last:-0}" -v n="${tokens:-0}" 'BEGIN {
        if (n > 1 && last > first)
            printf "%d tokens, %.0f tokens/s after the first\n", n, (n - 1) / (last - first)
        else
            printf "%d tokens\n", n
    }'
}

ask_question() {
    local body
    body="{\"model\": \"$name\", \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}], \"temperature\": 0,
        \"max_tokens\": 256, \"stream\": true, \"stream_options\": {\"include_usage\": true}}"
    printf '\nquestion: %s\nanswer:   ' "$question"
    curl --noproxy "*" -sS -N --max-time 120 -H 'Content-Type: application/json' -d "$body" "$1/v1/chat/completions" |
        print_stream || die "the answer broke off; the server's log is in $state/server.log"
}

if [ $stop = yes ]; then
    stop_server
    exit 0
fi
"$root/deploy/install-deps.sh" build
if [ -n "$(running_pid)" ]; then
    url=$(cat "$state/server.url")
    echo "the server already runs (process $(running_pid)); --stop ends it"
    ready "$url" || die "it is not ready; its log is in $state/server.log"
else
    build
    start_server
    url=$(cat "$state/server.url")
fi
if [ $ask = yes ]; then
    ask_question "$url"
fi
printf '\nplacement:\n'
sleep 0.3 # ranks report ten times a second
"$tensord" status --url "$url"
cat <<TEXT

The server runs at $url (log: $state/server.log). Ask it more:
  curl $url/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"model": "$name", "messages": [{"role": "user", "content": "$question"}]}'
Stop it with: deploy/quickstart.sh --stop
TEXT
