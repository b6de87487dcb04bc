#!/bin/bash
# Builds every fuzz target with Clang into build/fuzz and runs each for a while on its corpus; README.md says what they
# cover. Ends with a table, and with 1 when a target found something. tests/run.sh calls it with --ci.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root" || exit 1
here=tests/fuzz
build=${TD_FUZZ_BUILD:-build/fuzz}
seconds=60
jobs=1
kept=corpus
seed=()
minutes=
only=()

usage() {
    cat <<TEXT
usage: tests/fuzz/run.sh [--seconds N | --minutes N | --ci] [--jobs N] [TARGET...]

  --seconds N   how long each target runs (default $seconds)
  --minutes N   how long all of them run together, each an equal share
  --jobs N      how many targets run at the same time (default $jobs)
  --ci          2 seconds each from the seeds alone, with fixed random numbers, a target per core; no corpus is kept
  TARGET        such as fuzz_gguf or gguf; all without one

The build, the corpora that grow from run to run and the findings lie in build/fuzz (or \$TD_FUZZ_BUILD).
TEXT
}

whole() { # OPTION  VALUE
    if ! [[ $2 =~ ^[1-9][0-9]{0,5}$ ]]; then
        echo "run.sh: $1 is '$2', expected a whole number from 1 to 999999" >&2
        exit 2
    fi
}

while [ $# -gt 0 ]; do
    case $1 in
    --seconds)
        whole --seconds "${2:-}"
        seconds=$2
        minutes=
        shift
        ;;
    --minutes)
        whole --minutes "${2:-}"
        minutes=$2
        shift
        ;;
    --jobs)
        whole --jobs "${2:-}"
        jobs=$2
        shift
        ;;
    --ci)
        seconds=2
        minutes=
        jobs=$(nproc)
        kept=ci
        seed=(-seed=1)
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    -*)
        usage >&2
        exit 2
        ;;
    *) only+=("fuzz_${1#fuzz_}") ;;
    esac
    shift
done

targets=()
for source in "$here"/fuzz_*.c; do
    targets+=("$(basename "$source" .c)")
done
for target in ${only[@]+"${only[@]}"}; do
    if ! [[ " ${targets[*]} " == *" $target "* ]]; then
        echo "run.sh: there is no target '$target'; there are ${targets[*]}" >&2
        exit 2
    fi
done
[ ${#only[@]} -eq 0 ] || targets=("${only[@]}")
if [ -n "$minutes" ]; then
    seconds=$((minutes * 60 * jobs / ${#targets[@]}))
    [ "$seconds" -ge 1 ] || seconds=1
fi

mkdir -p "$build"
log=$build/build.log
generator=()
if [ ! -f "$build/CMakeCache.txt" ] && command -v ninja >/dev/null; then
    generator=(-G Ninja)
fi
echo "building ${#targets[@]} targets in $build"
if ! cmake -S . -B "$build" ${generator[@]+"${generator[@]}"} -DCMAKE_C_COMPILER="${CC:-clang}" -DTD_FUZZ=ON \
    -DTD_TESTS=OFF -DTD_WERROR=ON -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS='-O1 -g' >"$log" 2>&1 ||
    ! cmake --build "$build" -j "$(nproc)" --target make_seeds "${targets[@]}" >>"$log" 2>&1; then
    grep -E '(error|warning): |undefined reference|^CMake Error' "$log" | head -n 40 >&2
    echo "run.sh: the build failed; the whole log is $log" >&2
    exit 1
fi
"$build/fuzz/make_seeds" "$build/seeds" || exit 1

# Folders of inputs that a target starts from, beside the corpus that it has made itself.
inputs() { # TARGET
    local folder extra=()
    case $1 in
    fuzz_gguf) extra=(../shared/data/file-formats/gguf) ;;
    fuzz_safetensors) extra=(../shared/data/file-formats/safetensors) ;;
    fuzz_openai) extra=(../shared/data/json-parsing) ;;
    fuzz_chat) extra=(../shared/data/chat-templates/templates) ;;
    esac
    for folder in "$here/seeds/$1" "$build/seeds/$1" ${extra[@]+"${extra[@]}"}; do
        if [ -d "$folder" ]; then
            echo "$folder"
        fi
    done
}

number() { # PATTERN  FILE: the last number behind the pattern
    grep -oE "$1 *[0-9]+" "$2" | tail -n 1 | grep -oE '[0-9]+$' || echo 0
}

export ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}
export UBSAN_OPTIONS=print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}

# One target on its corpus; its log ends with how it ended.
run_target() { # TARGET
    local target=$1 corpus=$build/$kept/$1 findings=$build/findings/$1 out=$build/logs/$1.log folders options
    mkdir -p "$corpus" "$findings" "$build/logs"
    mapfile -t folders < <(inputs "$target")
    options=(-max_total_time="$seconds" -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=1024 -max_len=8192
        -print_final_stats=1 -artifact_prefix="$findings/" ${seed[@]+"${seed[@]}"})
    [ ! -f "$here/$target.dict" ] || options+=(-dict="$here/$target.dict")
    "$build/fuzz/$target" "${options[@]}" "$corpus" ${folders[@]+"${folders[@]}"} >"$out" 2>&1
    echo "status $?" >>"$out"
}

rm -rf "$build/ci"
echo "running $seconds s each, $jobs at a time"
for target in "${targets[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do
        wait -n
    done
    run_target "$target" &
done
wait

found=0
printf '%-18s %10s %8s %8s %8s  %s\n' target runs 'runs/s' edges corpus result
for target in "${targets[@]}"; do
    out=$build/logs/$target.log
    corpus=$build/$kept/$target
    result=clean
    if ! grep -qa '^status 0$' "$out"; then
        result=FOUND
        found=1
    fi
    printf '%-18s %10s %8s %8s %8s  %s\n' "$target" "$(number 'number_of_executed_units:' "$out")" \
        "$(number 'average_exec_per_sec:' "$out")" "$(number 'cov:' "$out")" \
        "$(find "$corpus" -type f | wc -l)" "$result"
done
for target in "${targets[@]}"; do
    out=$build/logs/$target.log
    if ! grep -qa '^status 0$' "$out"; then
        echo "$target found something; the input lies in $build/findings/$target, the whole log is $out:"
        grep -aE -A 25 -m 1 'ERROR: |runtime error: |broken: ' "$out" | sed 's/^/    /'
    fi
done
exit $found
