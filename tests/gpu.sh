#!/bin/bash
# Everything that needs a GPU: builds tests/gpu with CUDA into build-gpu and runs it, all ranks on the GPUs that are there (one is
# enough): the op matrix, the transport between GPUs and the whole program (checks), then measurements: of kernels, of the program with an 8B
# model, of PyTorch; last compute-sanitizer. DIR/report.md has it all, section after section as they
# end. The last line is "N passed, N failed, N skipped"; the exit status is 1 when anything failed. Without a GPU everything is
# skipped, by name. tests/README.md says what it needs.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
folder=$root/build-gpu
case_limit_s=600 # of one run of a test program
passed=0
failed=0
skipped=0

out=$folder
if [ "${1:-}" = --out ] && [ $# -ge 2 ]; then
    out=$2
    shift 2
fi
parts=$*
for part in $parts; do
    case $part in
    checks | kernels | program | torch | sanitizer) ;;
    *)
        echo "usage: tests/gpu.sh [--out DIR] [checks] [kernels] [program] [torch] [sanitizer]   (all of them; NCCL_HOME, CUDACXX and CUDA_HOME say where NCCL and CUDA are when they are nowhere usual)"
        [ "$part" = -h ] || [ "$part" = --help ] && exit 0
        exit 2
        ;;
    esac
done
wants() { # PART
    [ -z "$parts" ] || [[ " $parts " == *" $1 "* ]]
}
report=$out/report.md
mkdir -p "$out" && : >"$report" || exit 1

# A line of the report.
tell() {
    echo "$*" >>"$report"
}

finish() {
    tell "" && tell "$passed passed, $failed failed, $skipped skipped"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ]
    exit
}
# Every test program counts once where none can be built.
skip_all() { # REASON
    local source
    for source in tests/gpu/test_*.c tests/ops/test_ops_cuda.c; do
        skipped=$((skipped + 1))
        echo "skipped: $(basename "$source" .c): gpu: $1"
    done
    finish
}

# ---- what is here ----

has_gpu() {
    [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || { command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q GPU; }
}

find_nvcc() {
    local try
    for try in "${CUDACXX:-}" "$(command -v nvcc)" "${CUDA_HOME:-}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
        if [ -n "$try" ] && [ -x "$try" ]; then
            echo "$try"
            return
        fi
    done
}

# The folder that has include/nccl.h: NCCL_HOME, the usual ones, or that of a Python package.
find_nccl() {
    local try python
    for try in "${NCCL_HOME:-}" "$(dirname "$(dirname "$1")")" /usr/local /usr; do
        if [ -n "$try" ] && [ -e "$try/include/nccl.h" ]; then
            echo "$try"
            return
        fi
    done
    for python in python3 python; do
        try=$("$python" -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>/dev/null)
        if [ -n "$try" ] && [ -e "$try/include/nccl.h" ]; then
            echo "$try"
            return
        fi
    done
}

# The folder that has include/cublasLt.h, for --exact off: beside nvcc, or that of a Python package.
find_cublas() {
    local try python
    for try in "$(dirname "$(dirname "$1")")" /usr/local/cuda; do
        if [ -e "$try/include/cublasLt.h" ]; then
            echo "$try"
            return
        fi
    done
    for python in python3 python; do
        try=$("$python" -c 'import nvidia, pathlib; print(next(h for p in nvidia.__path__ for h in pathlib.Path(p).rglob("cublasLt.h")).parents[1])' 2>/dev/null)
        if [ -n "$try" ]; then
            echo "$try"
            return
        fi
    done
}

missing_tools() {
    local tool
    for tool in cmake cc c++; do
        command -v $tool >/dev/null || echo -n "$tool "
    done
}

if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | sed 's/^/gpu and driver: /'
fi
has_gpu || skip_all "no NVIDIA GPU here: no /dev/nvidiactl, and nvidia-smi lists none"
if [ -n "$(missing_tools)" ] && ! deploy/install-deps.sh build; then
    echo "tests/gpu.sh: apt installs nothing here; what is missing: $(missing_tools)"
fi
[ -z "$(missing_tools)" ] || skip_all "missing here: $(missing_tools)"
nvcc=$(find_nvcc)
[ -n "$nvcc" ] || skip_all "no nvcc: not in PATH, CUDACXX, CUDA_HOME or /usr/local/cuda/bin"
nccl=$(find_nccl "$nvcc")
[ -n "$nccl" ] || skip_all "no nccl.h: not in NCCL_HOME, beside $nvcc, in /usr or in a Python package nvidia.nccl"
{
    echo "# tests/gpu.sh on $(nvidia-smi --query-gpu=name --format=csv,noheader | sort | uniq -c | sed 's/^ *//' | paste -sd ,)"
    echo
    echo "$(date -u +%F), commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), driver" \
        "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1), $("$nvcc" --version | sed -nE 's/.*release ([^,]*),.*/CUDA \1/p')"
} >"$report"
cublas=$(find_cublas "$nvcc")
echo "nvcc: $nvcc, $("$nvcc" --version | sed -nE 's/.*release ([^,]*), (.*)/\2/p'); nccl.h: $nccl/include; cublasLt.h: ${cublas:-nowhere}"

# ---- building ----

mkdir -p "$folder"
export CUDACXX=$nvcc NCCL_HOME=$nccl CPATH=${cublas:+$cublas/include}${CPATH:+:$CPATH}
if ! { cmake -S tests/gpu -B "$folder" && cmake --build "$folder" -j "$(nproc)"; } >"$folder/build.log" 2>&1; then
    tail -n 40 "$folder/build.log" | sed 's/^/    /'
    echo "FAILED: the build (the whole log is build-gpu/build.log)"
    failed=1
    finish
fi

# ---- running ----

# The library that belongs to the header, and then what the loader finds.
export LD_LIBRARY_PATH=$nccl/lib${cublas:+:$cublas/lib:$cublas/lib64}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# There is a GPU, so a test that finds none does not skip.
export TD_NEED_GPU=1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
has_mpi=no
if grep -q '^mpi_FOUND:INTERNAL=1' "$folder/CMakeCache.txt" && command -v mpirun >/dev/null; then
    has_mpi=yes
fi
echo "ranks are started by: $([ $has_mpi = yes ] && echo mpirun || echo "the test itself (there is no MPI)")"

run() { # NAME  command...
    local name=$1 log=$folder/log.txt status line
    shift
    timeout -k 10 $case_limit_s "$@" </dev/null 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    line=$(grep -c '^ok: ' "$log")
    passed=$((passed + line))
    skipped=$((skipped + $(grep -c '^skipped: ' "$log")))
    # Every rank that found something has a line; a case counts once.
    line=$(sed -nE 's/^FAILED: ([0-9]+ ranks: [^:]*).*/\1/p' "$log" | sort -u | grep -c .)
    failed=$((failed + line))
    grep -E '^(ok|FAILED|skipped): ' "$log" | sed 's/^/- /' >>"$report"
    if [ "$status" -ne 0 ] && [ "$line" -eq 0 ]; then
        failed=$((failed + 1))
        if [ "$status" -eq 124 ]; then
            echo "FAILED: $name: not done within $case_limit_s s"
        else
            echo "FAILED: $name: ended with status $status"
        fi
    elif [ "$status" -eq 0 ] && ! grep -qE '^(ok|skipped): ' "$log"; then
        failed=$((failed + 1))
        echo "FAILED: $name: it ran no test"
    fi
}

run_checks() {
    local source name n mode
    tell "" && tell "## Checks" && tell ""
    run "the op matrix" "$folder/gpu/test_ops_cuda"
    for source in tests/gpu/test_*.c; do
        name=$(basename "$source" .c)
        for n in 1 2 3 4; do
            if [ $has_mpi = yes ]; then
                run "$name on $n ranks" mpirun -n $n "$folder/gpu/$name"
            else
                run "$name on $n ranks" "$folder/gpu/$name" $n
            fi
        done
        # Modes of their own: ranks that the test forks, since mpirun ends all when one dies.
        read -ra modes < <(sed -nE 's/^\/\* modes: (.*) \*\/$/\1/p' "$source")
        for mode in "${modes[@]}"; do
            run "$name $mode" "$folder/gpu/$name" 2 "$mode"
        done
    done

    # The program comes with the libraries that are missing here (tests/gpu/carry.sh).
    if [ -x build/carry/tensord ]; then
        run "the whole path" python3 tests/gpu/whole.py "$root/build/carry/tensord" "$folder/libtensord_cuda.so"
        grep '^|' "$folder/log.txt" >>"$report"
    else
        skipped=$((skipped + 1))
        echo "skipped: the whole path: gpu: there is no build/carry: tests/gpu/carry.sh makes it where the program is built"
    fi
}

# ---- measuring ----

bench=$folder/bench.md
run_kernels() {
    if timeout -k 10 200 "$folder/gpu/bench_kern" "$folder/libtensord_cuda.so" 2>&1 | tee "$bench" | grep -v '^FAILED'; [ "${PIPESTATUS[0]}" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: bench_kern: $(grep -m 1 '^FAILED' "$bench" || echo "it did not end in order")"
    fi
    tell "" && sed 's/^## /### /; s/^# /## /' "$bench" >>"$report"
}

# What a script prints as Markdown, also where it is stopped on its way.
run_script() { # NAME  SECONDS  TITLE  command...
    local name=$1 seconds=$2 title=$3 status
    shift 3
    timeout -k 10 "$seconds" "$@" >"$folder/$name.md" 2>"$folder/log.txt" </dev/null
    status=$?
    tell "" && tell "## $title" && tell "" && tee -a "$report" <"$folder/$name.md"
    if [ $status -eq 124 ]; then
        skipped=$((skipped + 1))
        echo "skipped: $name: gpu: not done within $seconds s" | tee -a "$report"
    elif [ $status -ne 0 ]; then
        skipped=$((skipped + 1))
        echo "skipped: $name: gpu: $(tail -n 1 "$folder/log.txt")" | tee -a "$report"
    fi
}

run_program() {
    local copy free
    copy=$(sed -nE 's/.*reads and writes ([0-9]+) GB\/s.*/\1/p' "$bench" 2>/dev/null | head -n 1)
    free=$(df --output=avail -k "$folder" | tail -n 1)
    if [ ! -x build/carry/tensord ] || [ "$free" -lt 18000000 ]; then
        skipped=$((skipped + 1))
        echo "skipped: an 8B model: gpu: there is no build/carry, or no 18 GB for it in $folder"
        return
    fi
    run_script wholebench 280 "An 8B Llama of random weights" python3 tests/gpu/wholebench.py "$root/build/carry/tensord" \
        "$folder/libtensord_cuda.so" "$folder" "${copy:-4000}"
}

# ---- memory and races ----

# The op matrix once more under NVIDIA's checkers, as far as the time goes.
run_sanitizer() {
    local sanitizer tool status
    tell "" && tell "## compute-sanitizer" && tell ""
    sanitizer=$(command -v compute-sanitizer || ls "$(dirname "$nvcc")/compute-sanitizer" 2>/dev/null)
    for tool in memcheck racecheck; do
        if [ -z "$sanitizer" ]; then
            skipped=$((skipped + 1))
            echo "skipped: compute-sanitizer $tool: gpu: there is no compute-sanitizer"
            continue
        fi
        timeout -k 10 90 "$sanitizer" --tool $tool --error-exitcode 3 "$folder/gpu/test_ops_cuda" >"$folder/$tool.txt" 2>&1
        status=$?
        if [ $status -eq 0 ]; then
            passed=$((passed + 1))
            tell "- ok: $tool finds nothing in the op matrix"
        elif [ $status -eq 124 ] || grep -q 'Device not supported' "$folder/$tool.txt"; then
            skipped=$((skipped + 1))
            echo "skipped: compute-sanitizer $tool: gpu: $([ $status -eq 124 ] && echo "not done within 90 s" || echo "it does not support this machine")" | tee -a "$report"
        else
            failed=$((failed + 1))
            echo "FAILED: compute-sanitizer $tool: $(grep -m 1 -E '=========  *(Invalid|Error|Race|Uninit)|=========' "$folder/$tool.txt")" | tee -a "$report"
        fi
    done
}

wants checks && run_checks
wants kernels && run_kernels
wants program && run_program
if wants torch; then
    run_script torchrates 60 "PyTorch: rates" python3 tests/gpu/torchrates.py
    run_script torchdecode 120 "PyTorch: decode" python3 tests/gpu/torchdecode.py
fi
wants sanitizer && run_sanitizer
finish
