#!/bin/bash
# One arrow, downward: a folder includes only from itself and from the folders below it (README, "Architecture").
# The linker checks the same for calls; this also finds a type or a constant taken from above.
set -euo pipefail
cd "$(dirname "$0")/../.."
bad=0

# FOLDER  files of it that are exempt (or -)  what a quoted include may begin with
check() {
    local folder=$1 except=$2 allowed=$3 hits
    hits=$(git ls-files "$folder" | grep -E '\.(c|h|cu|cuh)$' | grep -vE "$except" | while IFS= read -r file; do
        [ -f "$file" ] || continue # deleted, not yet committed
        grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]+"' "$file" |
            grep -vE "include[[:space:]]+\"($allowed)" || true
    done)
    if [ -n "$hits" ]; then
        printf '%s may include only from %s:\n%s\n' "$folder" "$allowed" "$hits"
        bad=1
    fi
}
none='^$'
check kernels/base "$none" 'kernels/base/'
check kernels "$none" 'kernels/'
check comm "$none" 'comm/|kernels/base/'
check proto "$none" 'proto/|kernels/base/'
check shard "$none" 'shard/|comm/|kernels/'
check deploy "$none" 'deploy/netlab/|kernels/base/'
check daemon '^daemon/(cli/|main\.c)' 'daemon/(api|text|coordinator|engine|journal|[a-z0-9_]+\.h)|shard/|comm/|proto/|kernels/'

# Libraries that only one layer may know: system headers by the files that may have them.
only() {
    local header=$1 allowed=$2 hits
    hits=$(git ls-files kernels comm proto shard daemon | grep -E '\.(c|h|cu|cuh)$' | grep -vE "$allowed" |
        xargs -r grep -HnE "^[[:space:]]*#[[:space:]]*include[[:space:]]+<$header" 2>/dev/null || true)
    if [ -n "$hits" ]; then
        printf '<%s> may be included only by %s:\n%s\n' "$header" "$allowed" "$hits"
        bad=1
    fi
}
only 'mpi\.h' '^comm/|^daemon/cli/version\.c'
only 'uv\.h' '^daemon/'
only 'protobuf-c/' '^proto/|^daemon/'
only 'nghttp2/' '^proto/|^daemon/'
only '(sys/socket|netinet/|arpa/|netdb)' '^daemon/'
only 'openssl/' '^daemon/'
only 'yaml\.h' '^daemon/'
only 'sqlite3\.h' '^daemon/journal/'
exit $bad
