#!/bin/bash
# Every header and program of another package that the build used is in a package of deploy/install-deps.sh or in what
# those depend on. Reads the dependency files that the compilers wrote, so it needs a finished build.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${TD_BUILD:-build}
if ! command -v dpkg-query >/dev/null || ! command -v ninja >/dev/null || [ ! -f "$build/build.ninja" ]; then
    exit 0 # not a Debian, or a build by another generator: nothing to read
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

deploy/install-deps.sh --list all | tr '|' '\n' | while IFS= read -r name; do
    dpkg-query -W -f '${Package}\n' "$name" 2>/dev/null || true
done >"$work/named"
# What apt would install for them on an empty machine, recommendations left out.
: >"$work/status"
xargs -r apt-get -o Dir::State::status="$work/status" -s --no-install-recommends install <"$work/named" 2>/dev/null |
    sed -n 's/^Inst \([^ ]*\).*/\1/p' | sed 's/:.*//' | sort -u >"$work/allowed"
if [ ! -s "$work/allowed" ]; then
    exit 0 # apt has no package lists here
fi
{
    ninja -C "$build" -t deps | grep -oE '/usr/[^ ]+'
    for tool in cc c++ cmake ninja pkg-config protoc protoc-c mpirun curl git clang clang-format-14 shellcheck \
        python3 openssl pkill ip; do
        readlink -f "$(command -v "$tool" || echo "/missing/$tool")"
    done
} | sort -u | xargs readlink -f | sort -u >"$work/files"
# Files of a merged /usr may be listed without it; a file of no package is this machine's own and is left out.
sed 'p;s,^/usr,,' "$work/files" | xargs -r dpkg-query -S 2>/dev/null |
    sed -nE 's/^([^:, ]+)[^/]* (\/.*)$/\1 \2/p' | sort -u -k1,1 >"$work/owners" || true
if [ ! -s "$work/owners" ]; then
    echo "dpkg-query found no package of $(wc -l <"$work/files") files"
    exit 1
fi
bad=0
while read -r owner file; do
    if ! grep -qx "$owner" "$work/allowed"; then
        echo "$file comes from the package $owner, which deploy/install-deps.sh does not install"
        bad=1
    fi
done <"$work/owners"
exit $bad
