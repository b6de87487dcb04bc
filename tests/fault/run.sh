#!/bin/bash
# Faults of all kinds at all moments against running requests; README.md says what is compared. Exit status 1 when a request was
# lost or told anything else than without the fault.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
export TD_BUILD=${TD_BUILD:-$root/build}
python=${TD_PYTHON:-$root/build/venv/bin/python}
if [ ! -x "$python" ]; then
    echo "tests/fault/run.sh: there is no $python: 'tests/run.sh e2e' makes it, or name one with tests/requirements.txt in TD_PYTHON" >&2
    exit 2
fi
exec "$python" "$here/suite.py" "$@"
