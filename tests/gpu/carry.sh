#!/bin/bash
# Collects the program with the libraries that it needs into build/carry, for a machine with a GPU that has none of them: tests/gpu.sh runs
# it from there. The C library is that machine's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
build=${TD_BUILD:-build}
out=build/carry
if [ ! -x "$build/tensord" ]; then
    echo "tests/gpu/carry.sh: there is no $build/tensord: build it first" >&2
    exit 1
fi
rm -rf "$out"
mkdir -p "$out/lib"
strip -o "$out/tensord" "$build/tensord"
ldd "$build/tensord" | awk '$3 ~ /^\// { print $3 }' |
    grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|ld-linux[^/]*)\.so' |
    xargs -I{} cp -L {} "$out/lib/"
du -sh "$out"
