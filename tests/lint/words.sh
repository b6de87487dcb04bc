#!/bin/bash
# Words that must not occur: log calls below daemon/, exits below main, paths of one machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$(pwd)
bad=0

report() { # TITLE  lines
    if [ -n "$2" ]; then
        printf '%s:\n%s\n' "$1" "$2"
        bad=1
    fi
}
# Lines of C code without comment lines.
search() { # PATTERN  files...
    local pattern=$1
    shift
    git ls-files "$@" | grep -E '\.(c|h|cu|cuh)$' | xargs -r grep -HnE "$pattern" 2>/dev/null |
        grep -vE '^[^:]+:[0-9]+:[[:space:]]*(\*|/\*|//)' || true
}

report 'only daemon/ logs' "$(search '(^|[^A-Za-z0-9_])td_log(_[a-z]+)? *\(' kernels comm proto shard)"
report 'only daemon/ prints' "$(search '(^|[^A-Za-z0-9_])(printf|puts|fputs|fprintf|perror) *\(' kernels comm proto shard)"
report 'nothing below main exits or aborts' "$(search '(^|[^A-Za-z0-9_])(_?exit|_Exit|quick_exit|abort) *\(' \
    kernels comm proto shard daemon | grep -vE '^daemon/(main\.c|cli/)' || true)"
report 'no reduction of the transport on floats (README, "Exactness"); that of a yardstick is only compared with' \
    "$(search 'MPI_I?(All)?reduce|MPI_Reduce_scatter' comm | grep -vE '^comm/yardstick\.c:|, MPI_INT, ' || true)"
report 'no path of one machine' "$(git ls-files -z | xargs -0 grep -HnIF -e "$root/" -e "$(dirname "$root")/shared" 2>/dev/null || true)"
report 'no path of one person' "$(git ls-files -z | grep -zvE '^LICENSE$|^tests/lint/words.sh$' |
    xargs -0 grep -HnIE '(^|[^A-Za-z0-9_.])/(home|Users)/[a-z]' 2>/dev/null || true)"
report 'trailing white space' "$(git ls-files -z -- '*.c' '*.h' '*.cu' '*.sh' '*.py' '*.proto' '*.txt' '*.cmake' |
    xargs -0 grep -HnIE '[[:space:]]+$' 2>/dev/null | head -n 20 || true)"
exit $bad
