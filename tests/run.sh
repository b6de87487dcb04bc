#!/bin/bash
# Everything that must be green: installs what is missing, builds, and runs every check. tests/README.md says what the
# stages are. The last line is "N passed, N failed, N skipped"; the exit status is 1 when anything failed.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
all_stages=(deps build lint unit e2e fault asan clang fuzz)

usage() {
    cat <<TEXT
usage: tests/run.sh [STAGE...]

Without a stage all of them run, in this order: ${all_stages[*]}
  deps    install the missing Debian packages
  build   build/: Release, warnings are errors
  lint    format, layers and the other checks of tests/lint
  unit    cmocka tests
  e2e     pytest: the program and real clients
  fault   the short form of tests/fault: each fault is a check
  asan    the cmocka tests, and hundreds of streams at once, under AddressSanitizer and UndefinedBehaviorSanitizer (build/asan)
  clang   a build with Clang, warnings are errors (build/clang)
  fuzz    every target of tests/fuzz for two seconds, from its seeds (build/fuzz)
TEXT
}

stages=()
for arg in "$@"; do
    case " ${all_stages[*]} " in
    *" $arg "*) stages+=("$arg") ;;
    *)
        usage
        [ "$arg" = -h ] || [ "$arg" = --help ] && exit 0
        echo "tests/run.sh: unknown stage '$arg'" >&2
        exit 2
        ;;
    esac
done
[ ${#stages[@]} -gt 0 ] || stages=("${all_stages[@]}")

# Open MPI refuses root and more ranks than cores unless told that both are meant.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export TD_BUILD=$root/build
jobs=$(nproc)
logs=$root/build/logs
mkdir -p "$logs"
passed=0
failed=0
skipped=0

pass() {
    passed=$((passed + 1))
}
fail() { # WHAT  [LOG]: its end is shown
    failed=$((failed + 1))
    echo "FAILED: $1"
    if [ -n "${2:-}" ]; then
        tail -n 60 "$2" | sed 's/^/    /'
    fi
}

# A skip counts as a failure where its reason is not one of the allowed kinds (tests/README.md).
skip() { # NAME  REASON
    local allowed='(^|[^a-z])(gpu|cuda|root|cpu|avx2?|avx512|amx)([^a-z]|$)'
    if [ -d "$root/../shared" ] && ! [[ ${2,,} =~ $allowed ]]; then
        fail "$1 was skipped although ../shared is here: ${2:-it gives no reason}"
        return
    fi
    skipped=$((skipped + 1))
    echo "skipped: $1: $2"
}

# ---- building ----

configure() { # FOLDER  cmake arguments...
    local folder=$1 generator=()
    shift
    if [ ! -f "$folder/CMakeCache.txt" ] && command -v ninja >/dev/null; then
        generator=(-G Ninja)
    fi
    cmake -S "$root" -B "$folder" "${generator[@]}" "$@"
}

build() { # NAME  FOLDER  cmake arguments...
    local name=$1 folder=$2 go_on=(--)
    shift 2
    if ! configure "$folder" "$@" >"$logs/$name.log" 2>&1; then
        fail "$name: cmake" "$logs/$name.log"
        return 1
    fi
    # All errors at once: one run tells everything that is to be repaired.
    [ ! -f "$folder/build.ninja" ] || go_on=(-- -k 0)
    if ! cmake --build "$folder" -j "$jobs" "${go_on[@]}" >>"$logs/$name.log" 2>&1; then
        grep -E '(error|warning): |undefined reference|^CMake Error' "$logs/$name.log" | head -n 60 | sed 's/^/    /'
        fail "$name: the build (the whole log is build/logs/$name.log)"
        return 1
    fi
    pass
}

# ---- cmocka ----

# Runs the program of every test_*.c of tests/unit/* and tests/ops, `jobs` at a time; output and exit status end in $logs/<stage>.
# shellcheck disable=SC2016 # the inner shell expands the names
run_programs() { # STAGE  FOLDER
    local out=$logs/$1
    rm -rf "$out"
    mkdir -p "$out"
    find tests/unit tests/ops -name 'test_*.c' -printf '%f\n' | sort | sed 's/\.c$//' |
        OUT=$out FOLDER=$2/tests xargs -P "$jobs" -I{} bash -c '
            timeout 300 "$FOLDER/{}" >"$OUT/{}.log" 2>&1 </dev/null
            echo $? >"$OUT/{}.status"'
}

# "passed failed" of one output, then a line "skip NAME REASON" per skip. Lines after "[==========] N test(s) run."
# repeat what was said. The reason is the last line before the skip that begins with "skip".
count_cases() {
    awk '
        done { next }
        /^\[=+\] [0-9]+ test\(s\) run/ { done = 1; next }
        /^\[       OK \] / { ok++ }
        /^\[  FAILED  \] / { bad++ }
        /^[Ss][Kk][Ii][Pp]/ { reason = $0 }
        /^\[ RUN      \] / { reason = "" }
        /^\[  SKIPPED \] / { skips = skips "skip " $4 " " reason "\n"; reason = "" }
        END { printf "count %d %d\n%s", ok, bad, skips }' "$1"
}

stage_unit() {
    local status_file name status kind a b
    run_programs unit build
    for status_file in "$logs"/unit/*.status; do
        [ -e "$status_file" ] || {
            fail "there is no test_*.c in tests/unit and tests/ops"
            return
        }
        name=$(basename "$status_file" .status)
        status=$(cat "$status_file")
        while read -r kind a b; do
            case $kind in
            count)
                passed=$((passed + a))
                failed=$((failed + b))
                if [ "$b" -gt 0 ]; then
                    echo "FAILED: $b of $name:"
                    grep -vE '^\[( RUN      |       OK )\]' "$logs/unit/$name.log" | tail -n 40 | sed 's/^/    /'
                elif [ "$status" -ne 0 ]; then
                    fail "$name ended with status $status" "$logs/unit/$name.log"
                elif [ "$a" -eq 0 ] && ! grep -q SKIPPED "$logs/unit/$name.log"; then
                    fail "$name ran no test" "$logs/unit/$name.log"
                fi
                ;;
            skip) skip "$name: $a" "${b#*"$a": }" ;;
            esac
        done < <(count_cases "$logs/unit/$name.log")
    done
}

# One program under the sanitizers counts as one check: its cases were counted by the stage before.
stage_asan() {
    local status_file name
    build asan build/asan -DCMAKE_BUILD_TYPE=None -DCMAKE_C_FLAGS='-O1 -g' -DTD_SANITIZE=address,undefined || return
    export ASAN_OPTIONS=strict_string_checks=1
    export UBSAN_OPTIONS=print_stacktrace=1
    export LSAN_OPTIONS=suppressions=$root/tests/lint/lsan.supp:print_suppressions=0
    run_programs asan build/asan
    for status_file in "$logs"/asan/*.status; do
        name=$(basename "$status_file" .status)
        if [ "$(cat "$status_file" 2>/dev/null)" = 0 ]; then
            pass
        else
            fail "$name under the sanitizers" "$logs/asan/$name.log"
        fi
    done
    TENSORD_BIN=$root/build/asan/tensord run_pytest asan-load tests/e2e/test_serve_load.py
}

# ---- the other stages ----

stage_deps() {
    if deploy/install-deps.sh all; then
        pass
    else
        fail "deploy/install-deps.sh"
    fi
}

stage_build() {
    build build build -DCMAKE_BUILD_TYPE=Release -DTD_WERROR=ON -DTD_TESTS=ON -DTD_CUDA=AUTO
}

stage_clang() {
    build clang build/clang -DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=clang -DTD_WERROR=ON
}

# One target is one check. The build takes what the targets need and no more; build/clang has other flags throughout.
stage_fuzz() {
    local target result rest
    tests/fuzz/run.sh --ci >"$logs/fuzz.log" 2>&1
    if ! grep -q '^target  *runs ' "$logs/fuzz.log"; then
        fail "fuzz: the build" "$logs/fuzz.log"
        return
    fi
    while read -r target rest; do
        result=${rest##* }
        if [ "$result" = clean ]; then
            pass
        else
            fail "$target: build/logs/fuzz.log has the stack, build/fuzz/findings/$target the input" \
                "$root/build/fuzz/logs/$target.log"
        fi
    done < <(grep '^fuzz_[a-z0-9]* .* [a-zA-Z]*$' "$logs/fuzz.log")
}

stage_lint() {
    local script
    for script in tests/lint/*.sh; do
        if "$script" >"$logs/lint.log" 2>&1; then
            pass
        else
            fail "$script" "$logs/lint.log"
        fi
    done
}

# The clients' environment is made anew when tests/requirements.txt changes.
make_venv() {
    local venv=$root/build/venv
    if ! cmp -s tests/requirements.txt "$venv/requirements.txt"; then
        rm -rf "$venv"
        python3 -m venv "$venv" && "$venv/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt &&
            cp tests/requirements.txt "$venv/requirements.txt"
    fi
}

# NAME PATH...: runs pytest over the paths and counts; the output is logged under the name.
run_pytest() {
    local name=$1 numbers tests failures errors skips line
    shift
    if ! make_venv >"$logs/venv.log" 2>&1; then
        fail "the environment of tests/requirements.txt" "$logs/venv.log"
        return
    fi
    rm -f "$logs/$name.xml"
    build/venv/bin/python -m pytest -q -rsfE -p no:cacheprovider --junitxml="$logs/$name.xml" "$@" 2>&1 |
        tee "$logs/$name.log"
    numbers=$(grep -oE '<testsuite [^>]*>' "$logs/$name.xml" 2>/dev/null | head -n 1)
    tests=$(sed -nE 's/.* tests="([0-9]+)".*/\1/p' <<<"$numbers")
    failures=$(sed -nE 's/.* failures="([0-9]+)".*/\1/p' <<<"$numbers")
    errors=$(sed -nE 's/.* errors="([0-9]+)".*/\1/p' <<<"$numbers")
    skips=$(sed -nE 's/.* skipped="([0-9]+)".*/\1/p' <<<"$numbers")
    if [ -z "$tests" ] || [ "$tests" -eq 0 ]; then
        fail "pytest ran no test; its output is above"
        return
    fi
    passed=$((passed + tests - failures - errors - skips))
    failed=$((failed + failures + errors))
    # "SKIPPED [2] tests/e2e/test_x.py:12: gpu: none here": two tests for one reason.
    while IFS= read -r line; do
        if [[ $line =~ ^SKIPPED\ \[([0-9]+)\]\ ([^ ]+)\ (.*)$ ]]; then
            for ((i = 0; i < BASH_REMATCH[1]; i++)); do
                skip "${BASH_REMATCH[2]%:}" "${BASH_REMATCH[3]}"
            done
        fi
    done < <(grep '^SKIPPED' "$logs/$name.log")
}

stage_e2e() {
    run_pytest e2e tests/e2e
}

# Every line of a fault is one check; a line that begins otherwise is no fault. The same faults each time.
stage_fault() {
    local log=$logs/fault.log status line n_lines=0 n_failed=0
    if ! make_venv >"$logs/venv.log" 2>&1; then
        fail "the environment of tests/requirements.txt" "$logs/venv.log"
        return
    fi
    tests/fault/run.sh --short --seed 1 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    while IFS= read -r line; do
        if [[ $line =~ ^skipped:\ ([^:]+):\ (.*)$ ]]; then
            skip "tests/fault, ${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
        elif [[ $line =~ ^\ *[0-9]+\ \ [a-z-]+\ .*\ whole ]]; then
            n_lines=$((n_lines + 1))
            [[ $line != *FAILED* ]] || n_failed=$((n_failed + 1))
        fi
    done <"$log"
    passed=$((passed + n_lines - n_failed))
    failed=$((failed + n_failed))
    if [ "$n_lines" -eq 0 ] || { [ "$status" -ne 0 ] && [ "$n_failed" -eq 0 ]; }; then
        fail "tests/fault/run.sh ended with status $status after $n_lines faults" "$log"
    fi
}

start=$SECONDS
for stage in "${stages[@]}"; do
    began=$SECONDS
    before=$failed
    echo "== $stage"
    "stage_$stage"
    echo "== $stage: $([ $failed -eq $before ] && echo ok || echo FAILED), $((SECONDS - began)) s"
    if [ $failed -ne $before ] && { [ "$stage" = deps ] || [ "$stage" = build ]; }; then
        echo "the other stages need this one and are left out"
        break
    fi
done
echo "all stages: $((SECONDS - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
