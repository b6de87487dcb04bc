#!/bin/bash
# Runs shellcheck over every shell script, where it is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."
if ! command -v shellcheck >/dev/null; then
    echo "shellcheck is missing: deploy/install-deps.sh test"
    exit 1
fi
git ls-files -z "*.sh" .ci/run deploy/netlab/netlab | xargs -0 shellcheck -x
