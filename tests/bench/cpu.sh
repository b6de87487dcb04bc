#!/bin/bash
# The table of a CPU report, in Markdown, for this machine: decode, prompt, batch, depth, load and first token of each model,
# as shares of the probes beside them, and another program's times from the same minutes. tests/bench/README.md says more.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)

usage() {
    cat <<TEXT
usage: tests/bench/cpu.sh MODEL... [--peer LLAMA-BENCH] [--reps N] [--threads N] [--cases LIST]
                          [--peer-args "-rtr 1"] [--batched-args "-rtr"] [--prompt N] [--depth N]
                          [--keep FOLDER]

  --peer       a llama-bench; llama-batched-bench is taken from beside it. May be repeated
  --peer-args  more arguments for the llama-bench named last; --batched-args for its llama-batched-bench
  --reps       rounds: one of ours, one of each peer, in turn (3)
  --threads    of everybody (the cores of this process)
  --cases      of tensord bench (decode,prefill,batch,depth,load,first)
  --prompt     tokens of the prompt (512)
  --depth      tokens before the decode at a depth (4096)
  --keep       leaves the raw outputs there
\$TENSORD_BIN names the program, else it is build/tensord.
TEXT
}

models=()
peers=()
peer_args=()
batched_args=()
reps=3
threads=$(nproc)
cases=decode,prefill,batch,depth,load,first
depth=4096
prompt=512
gen=64 # decode steps of a round
batch=16
fill=32 # what a sequence of tensord's batch starts with
keep=
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --peer | --peer-args | --batched-args | --reps | --threads | --cases | --prompt | --depth | --keep)
        if [ $# -lt 2 ]; then
            echo "cpu.sh: $1 has no value" >&2
            exit 2
        fi
        case $1 in
        --peer)
            peers+=("$2")
            peer_args+=("")
            batched_args+=("")
            ;;
        --peer-args | --batched-args)
            if [ ${#peers[@]} -eq 0 ]; then
                echo "cpu.sh: $1 stands after its --peer" >&2
                exit 2
            elif [ "$1" = --peer-args ]; then
                peer_args[${#peers[@]} - 1]=$2
            else
                batched_args[${#peers[@]} - 1]=$2
            fi
            ;;
        --reps) reps=$2 ;;
        --threads) threads=$2 ;;
        --cases) cases=$2 ;;
        --prompt) prompt=$2 ;;
        --depth) depth=$2 ;;
        --keep) keep=$2 ;;
        esac
        shift 2
        ;;
    -*)
        echo "cpu.sh: unknown option '$1'" >&2
        usage >&2
        exit 2
        ;;
    *)
        models+=("$1")
        shift
        ;;
    esac
done
for number in "reps $reps" "threads $threads" "prompt $prompt" "depth $depth"; do
    if ! [[ ${number#* } =~ ^[1-9][0-9]*$ ]]; then
        echo "cpu.sh: --${number% *}: got '${number#* }', expected a whole number from 1" >&2
        exit 2
    fi
done
tensord=${TENSORD_BIN:-$root/build/tensord}
unset TENSORD_BIN # it is no option of the program
if [ ${#models[@]} -eq 0 ]; then
    usage >&2
    exit 2
fi
for file in "${models[@]}"; do
    if [ ! -e "$file" ]; then
        echo "cpu.sh: model '$file' does not exist" >&2
        exit 1
    fi
done
for file in "$tensord" "${peers[@]}"; do
    if [ ! -x "$file" ]; then
        echo "cpu.sh: '$file' is no program: expected one that can be run" >&2
        exit 1
    fi
done
mapfile -t models < <(realpath -- "${models[@]}")
[ ${#peers[@]} -eq 0 ] || mapfile -t peers < <(realpath -- "${peers[@]}")
work=${keep:-$(mktemp -d)}
mkdir -p "$work"
work=$(realpath -- "$work")
[ -n "$keep" ] || trap 'rm -rf "$work"' EXIT

has_case() {
    case ",$cases," in *",$1,"*) return 0 ;; *) return 1 ;; esac
}

# What one round of ours gives, in $work/MODEL-INDEX.ours.ROUND.
ours() { # INDEX  MODEL  ROUND
    local out=$work/$1.ours.$3 start end
    if ! "$tensord" bench --model "$2" --repetitions 1 --threads "$threads" --cases "$cases" \
        --prompt-tokens "$prompt" --gen-tokens $gen --batch $batch --depth "$depth" --json >"$out.json" 2>"$out.log"; then
        tail -n 1 "$out.log" >&2
        exit 1
    fi
    if has_case first; then # as a user sees it: the program's start, its end, and one token between
        start=$(date +%s%N)
        "$tensord" generate --model "$2" --threads "$threads" --prompt-ids 1 --max-tokens 1 --ignore-eos \
            >/dev/null 2>>"$out.log"
        end=$(date +%s%N)
        echo $((end - start)) >"$out.start_ns"
    fi
}

# Peers leave logs where they run.
in_work() { # COMMAND...
    (cd "$work" && "$@")
}

# The same of a peer. One of them has no --n-depth: its -gp P,G times G tokens after P.
peer() { # INDEX  MODEL  ROUND  PEER
    local bench=${peers[$4]} out=$work/$1.peer$4.$3 extra batched_extra after deep batched
    read -ra extra <<<"${peer_args[$4]}"
    read -ra batched_extra <<<"${batched_args[$4]}"
    if [ "$3" -eq 0 ]; then # which kinds of memory it packs the weights into
        in_work "$bench" -m "$2" -t "$threads" -r 1 -p 1 -n 0 -v "${extra[@]}" 2>&1 |
            grep 'model buffer size' >"$work/$1.peer$4.buffers" || true
    fi
    if [[ $("$bench" --help 2>&1) == *--n-depth* ]]; then
        after=(-p 0 -n "$gen" -d "$prompt")
        deep=(-p 0 -n "$gen" -d "$depth")
    else
        after=(-p 0 -n 0 -gp "$prompt,$gen")
        deep=(-p 0 -n 0 -gp "$depth,$gen")
    fi
    run_peer() { # CASE  arguments...
        local name=$1
        shift
        in_work "$bench" -t "$threads" -r 1 -o json "$@" "${extra[@]}" >"$out.$name.json" 2>>"$out.log" ||
            echo "cpu.sh: $bench failed at $name; its messages: $(tail -n 1 "$out.log")" >&2
    }
    if has_case prefill; then run_peer prefill -m "$2" -p "$prompt" -n 0; fi
    if has_case decode; then run_peer decode -m "$2" "${after[@]}"; fi
    if has_case depth; then run_peer depth -m "$2" "${deep[@]}"; fi
    batched=$(dirname "$bench")/llama-batched-bench
    if has_case batch && [ -x "$batched" ]; then
        in_work "$batched" -m "$2" -t "$threads" -c $((batch * (fill + gen))) -npp $fill -ntg $gen -npl $batch "${batched_extra[@]}" \
            >"$out.batch.txt" 2>&1 || echo "cpu.sh: $batched failed: $(tail -n 1 "$out.batch.txt")" >&2
    fi
}

"$tensord" bench machine --threads "$threads" --json >"$work/machine.json"
for m in "${!models[@]}"; do
    find -L "${models[$m]}" -type f -exec cat {} + >/dev/null # into the page cache
    for ((round = 0; round < reps; round++)); do
        echo "${models[$m]}: round $((round + 1)) of $reps, load $(cut -d' ' -f1 /proc/loadavg)" >&2
        cut -d' ' -f1 /proc/loadavg >>"$work/load"
        ours "$m" "${models[$m]}" "$round"
        for p in "${!peers[@]}"; do
            [ -f "${models[$m]}" ] || continue # a peer reads GGUF files only
            peer "$m" "${models[$m]}" "$round" "$p"
        done
    done
done

# Facts of the machine, then the tables.
field() { # NAME of lscpu
    lscpu | sed -nE "s/^$1: *//p" | head -n 1
}
cat <<TEXT
| machine | |
|---|---|
| date | $(date -u +%Y-%m-%d) |
| CPU | $(field 'Model name'), family $(field 'CPU family') model $(field Model) stepping $(field Stepping) |
| cores | $(field 'CPU\(s\)'), $(field 'Thread\(s\) per core') thread(s) per core, $threads used; virtual: $(field 'Hypervisor vendor') |
| caches | L1d $(field 'L1d cache'), L2 $(field 'L2 cache'), L3 $(field 'L3 cache') |
| NUMA | $(field 'NUMA node\(s\)') node(s) |
| memory | $(awk '/^MemTotal/ { printf "%.1f GiB", $2 / 1048576 }' /proc/meminfo) |
| kernel | $(uname -sr) |
| transparent huge pages | $(cat /sys/kernel/mm/transparent_hugepage/enabled 2>/dev/null || echo unknown) |
| load average before each round | $(paste -sd ' ' "$work/load") |
| tensord | $(git -C "$root" describe --always --dirty 2>/dev/null || echo "not a git checkout") |
TEXT
peer_flags=()
for p in "${!peers[@]}"; do
    peer_flags+=("$(basename "$(cd "$(dirname "${peers[$p]}")/../.." && pwd)")${peer_args[$p]:+ ${peer_args[$p]}}")
done
python3 "$here/table.py" "$work" "$reps" "${#models[@]}" "${models[@]}" "${peer_flags[@]}"
