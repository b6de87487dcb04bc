#!/bin/bash
# Every C file is as clang-format 14 writes it (.clang-format decides).
set -euo pipefail
cd "$(dirname "$0")/../.."
format=$(command -v clang-format-14 || command -v clang-format) || {
    echo "clang-format is missing: deploy/install-deps.sh test"
    exit 1
}
mapfile -t files < <(git ls-files | grep -E '\.(c|h|cu|cuh)$' | while IFS= read -r f; do [ -f "$f" ] && echo "$f"; done)
bad=0
for file in "${files[@]}"; do
    if ! "$format" --dry-run -Werror "$file" 2>/dev/null; then
        echo "not formatted: $file (clang-format -i)"
        bad=1
    fi
done
exit $bad
