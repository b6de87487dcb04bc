#!/bin/bash
# The table of a serving report, in Markdown: this server and others under the same load, by turns, in the same minutes.
# tests/bench/README.md says more.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

usage() {
    cat <<TEXT
usage: tests/bench/serve.sh MODEL [--peer-url URL]... [--peer-server LLAMA-SERVER]... [options]

  --peer-url URL       a server that runs already, with OpenAI's API. May be repeated
  --peer-server PATH   a llama-server, which is started on the same file and ended again. May be repeated
  --peer-args "..."    more arguments for the --peer-server named last
  --our-args "..."     more arguments for our server
  --users LIST         closed loops: so many requests at a time (1,16)
  --rates LIST         open loops: Poisson arrivals, requests per second (none)
  --requests N         per user of a closed loop, and 16 times as many of an open one (4)
  --input-len DIST     words of a prompt (128), as of bench serve
  --output-len DIST    tokens of an answer (64); end tokens are ignored
  --prefix-share X     part of each prompt that all share (0)
  --endpoint NAME      completions or chat (completions)
  --context N          tokens of a sequence that the started servers have room for (1024)
  --threads N          of every started server (the cores of this process)
  --rounds N           each server once per round (3)
  --keep FOLDER        leaves the raw outputs there
\$TENSORD_BIN names the program, else it is build/tensord.
TEXT
}

fail() { # STATUS  MESSAGE
    echo "serve.sh: $2" >&2
    exit "$1"
}

model=
names=()
urls=()
programs=()
peer_args=()
our_args=
users=1,16
rates=
requests=4
input_len=128
output_len=64
prefix_share=0
endpoint=completions
context=1024
threads=$(nproc)
rounds=3
keep=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --peer-url | --peer-server | --peer-args | --our-args | --users | --rates | --requests | --input-len | \
        --output-len | --prefix-share | --endpoint | --context | --threads | --rounds | --keep)
        [ $# -ge 2 ] || fail 2 "$1 has no value"
        case $1 in
        --peer-url)
            names+=("$2")
            urls+=("$2")
            programs+=("")
            peer_args+=("")
            ;;
        --peer-server)
            names+=("$(basename "$2")")
            urls+=("")
            programs+=("$2")
            peer_args+=("")
            ;;
        --peer-args)
            [ ${#programs[@]} -gt 0 ] || fail 2 "--peer-args stands after its --peer-server"
            peer_args[${#programs[@]} - 1]=$2
            ;;
        --our-args) our_args=$2 ;;
        --users) users=$2 ;;
        --rates) rates=$2 ;;
        --requests) requests=$2 ;;
        --input-len) input_len=$2 ;;
        --output-len) output_len=$2 ;;
        --prefix-share) prefix_share=$2 ;;
        --endpoint) endpoint=$2 ;;
        --context) context=$2 ;;
        --threads) threads=$2 ;;
        --rounds) rounds=$2 ;;
        --keep) keep=$2 ;;
        esac
        shift 2
        ;;
    -*) fail 2 "unknown option '$1'; --help lists them" ;;
    *)
        [ -z "$model" ] || fail 2 "one model is expected, got '$model' and '$1'"
        model=$1
        shift
        ;;
    esac
done
if [ -z "$model" ]; then
    usage >&2
    exit 2
fi
[ -e "$model" ] || fail 1 "model '$model' does not exist"
for number in "requests $requests" "context $context" "threads $threads" "rounds $rounds"; do
    [[ ${number#* } =~ ^[1-9][0-9]*$ ]] ||
        fail 2 "--${number% *}: got '${number#* }', expected a whole number from 1"
done
[[ $users =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || fail 2 "--users: got '$users', expected whole numbers from 1"
tensord=${TENSORD_BIN:-$root/build/tensord}
unset TENSORD_BIN # it is no option of the program
for file in "$tensord" "${programs[@]}"; do
    [ -z "$file" ] || [ -x "$file" ] || fail 1 "'$file' is no program: expected one that can be run"
done
model=$(realpath -- "$model")
work=${keep:-$(mktemp -d)}
mkdir -p "$work"
work=$(realpath -- "$work")

pids=()
stop_all() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${pids[@]}"; do
        wait "$pid" 2>/dev/null || true
    done
    [ -n "$keep" ] || rm -rf "$work"
}
trap stop_all EXIT
trap 'exit 130' INT TERM

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

wait_ready() { # NAME  URL  PID  LOG
    local i
    for ((i = 0; i < 1200; i++)); do
        if curl -fs -o /dev/null --max-time 2 "$2"; then
            return
        fi
        kill -0 "$3" 2>/dev/null || fail 1 "$1 ended before it was ready: $(tail -n 1 "$4")"
        sleep 0.25
    done
    fail 1 "$1 was not ready within five minutes: $(tail -n 1 "$4")"
}

# As many sequences at a time as the largest closed loop has; open loops take what there is.
slots=1
for n in ${users//,/ }; do
    [ "$n" -le "$slots" ] || slots=$n
done
[ -z "$rates" ] || [ "$slots" -ge 16 ] || slots=16

find -L "$model" -type f -exec cat {} + >/dev/null # into the page cache
names=("tensord" "${names[@]}")
urls=("" "${urls[@]}")
port=$(free_port)
read -ra extra <<<"$our_args"
"$tensord" serve --model "$model" -n 1 --threads "$threads" --host 127.0.0.1 --port "$port" --max-num-seqs "$slots" \
    --max-model-len "$context" ${extra[@]+"${extra[@]}"} >"$work/server.0.log" 2>&1 &
pids+=($!)
urls[0]=http://127.0.0.1:$port
wait_ready tensord "${urls[0]}/readyz" "${pids[-1]}" "$work/server.0.log"
for p in "${!programs[@]}"; do
    [ -n "${programs[$p]}" ] || continue
    port=$(free_port)
    read -ra extra <<<"${peer_args[$p]}"
    # Peers leave logs where they run.
    (cd "$work" && exec "$(realpath -- "${programs[$p]}")" -m "$model" -t "$threads" -tb "$threads" --host 127.0.0.1 --port "$port" \
        -np "$slots" -c $((slots * context)) ${extra[@]+"${extra[@]}"} >"$work/server.$((p + 1)).log" 2>&1) &
    pids+=($!)
    urls[p + 1]=http://127.0.0.1:$port
    wait_ready "${names[p + 1]}" "${urls[p + 1]}/health" "${pids[-1]}" "$work/server.$((p + 1)).log"
done

loads=()
for n in ${users//,/ }; do
    loads+=("concurrency $n $((n * requests))")
done
for r in ${rates//,/ }; do
    loads+=("request-rate $r $((16 * requests))")
done
for ((round = 0; round < rounds; round++)); do
    cut -d' ' -f1 /proc/loadavg >>"$work/load"
    for l in "${!loads[@]}"; do
        read -r kind value n <<<"${loads[$l]}"
        for s in "${!urls[@]}"; do
            echo "round $((round + 1)) of $rounds: ${names[$s]}, $kind $value" >&2
            # The seed changes with the round: no server has seen these texts.
            "$tensord" bench serve --url "${urls[$s]}" "--$kind" "$value" --num-requests "$n" --seed $((round * 1000 + l)) \
                --input-len "$input_len" --output-len "$output_len" --shared-prefix-share "$prefix_share" --endpoint "$endpoint" \
                --ignore-eos --warmup-requests "$slots" --json-file "$work/$s.$l.$round.json" >"$work/$s.$l.$round.txt" ||
                fail 1 "${names[$s]} at ${urls[$s]} failed; see above"
        done
    done
done

cat <<TEXT
| machine | |
|---|---|
| date | $(date -u +%Y-%m-%d) |
| CPU | $(lscpu | sed -nE 's/^Model name: *//p' | head -n 1) |
| threads | $threads of $(nproc) cores, of every started server |
| model | $(basename "$model") |
| load | input $input_len words, output $output_len tokens, shared prefix $prefix_share, $endpoint; $rounds rounds |
| load average before each round | $(paste -sd ' ' "$work/load") |
| tensord | $(git -C "$root" describe --always --dirty 2>/dev/null || echo "not a git checkout")${our_args:+ $our_args} |
TEXT
for p in "${!programs[@]}"; do
    if [ -n "${programs[$p]}" ]; then
        version=$("${programs[$p]}" --version 2>&1 | sed -nE 's/^version: *//p' | head -n 1 || true)
        echo "| ${names[p + 1]} | ${version:-unknown}${peer_args[$p]:+ ${peer_args[$p]}} |"
    fi
done
python3 "$here/serve_table.py" "$work" "$rounds" "${#loads[@]}" "${names[@]}"
