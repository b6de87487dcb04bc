#!/bin/bash
# The one list of Debian packages that tensord is built, run and tested with. Installs those that are missing.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: deploy/install-deps.sh [--list] [GROUP...]

Installs the missing packages of the groups with apt, as root or through sudo. Groups:
  build   what building and running needs (default)
  test    what tests/run.sh needs besides
  all     both
--list only prints the names, one per line ("a|b": the first one that apt knows).
TEXT
}

# "a|b" is for a package whose name depends on the release: the first that apt knows is taken.
build_packages=(
    build-essential cmake ninja-build pkg-config
    openmpi-bin libopenmpi-dev       # the ranks
    libuv1-dev                       # event loop
    protobuf-compiler                # descriptors for gRPC reflection
    protobuf-c-compiler libprotobuf-c-dev
    libnghttp2-dev                   # HTTP/2
    'libllhttp-dev|node-llhttp'      # HTTP/1.1; Debian 12 ships its C source in node-llhttp
    libssl-dev                       # TLS
    libjansson-dev                   # JSON
    libyaml-dev                      # --config
    libpcre2-dev libutf8proc-dev     # tokenizers
    libxxhash-dev                    # hashes of models and steps
    libhwloc-dev                     # cores and memory of the host
    libedit-dev                      # line editing of chat
    libsqlite3-dev                   # journal
    libcmocka-dev                    # unit tests, which a plain build builds too
    curl ca-certificates             # quick start
)
test_packages=(
    git                              # the checks read the list of tracked files
    clang clang-format-14 libclang-rt-14-dev
    shellcheck
    python3 python3-venv             # clients of the end-to-end tests
    openssl                          # certificates for the TLS tests
    procps                           # kill a rank by its name
    iproute2                         # hosts of deploy/netlab
)

list=no
packages=()
for arg in "$@"; do
    case $arg in
    --list) list=yes ;;
    build) packages+=("${build_packages[@]}") ;;
    test) packages+=("${test_packages[@]}") ;;
    all) packages+=("${build_packages[@]}" "${test_packages[@]}") ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "install-deps.sh: unknown argument '$arg'" >&2
        usage >&2
        exit 2
        ;;
    esac
done
[ ${#packages[@]} -gt 0 ] || packages=("${build_packages[@]}")

if [ $list = yes ]; then
    printf '%s\n' "${packages[@]}"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "install-deps.sh: there is no apt-get here; install what these Debian packages hold:" >&2
    printf '  %s\n' "${packages[@]}" >&2
    exit 1
fi

installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=()
for package in "${packages[@]}"; do
    found=no
    for name in ${package//|/ }; do
        if installed "$name"; then
            found=yes
        fi
    done
    [ $found = yes ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "install-deps.sh: all ${#packages[@]} packages are there"
    exit 0
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "install-deps.sh: not root and no sudo here; as root, run: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    root=(sudo)
fi
apt() {
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@"
}

echo "install-deps.sh: installs ${missing[*]}"
apt -qq update
names=()
for package in "${missing[@]}"; do
    chosen=
    for name in ${package//|/ }; do
        if [ -z "$chosen" ] && [[ $(apt-cache policy "$name" 2>/dev/null) =~ Candidate:\ [^\(] ]]; then
            chosen=$name
        fi
    done
    if [ -z "$chosen" ]; then
        echo "install-deps.sh: apt knows no package '$package'; is this Debian 12 or newer?" >&2
        exit 1
    fi
    names+=("$chosen")
done
apt install --no-install-recommends "${names[@]}"
