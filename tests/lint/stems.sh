#!/bin/bash
# File-name stems are unique in the tree, so that td_sched_admit is known to live in sched.c. A .c and its .h are one.
# A command's file may share its stem with the part that it commands: it holds nothing but td_cmd_<stem>.
set -euo pipefail
cd "$(dirname "$0")/../.."
commands=$(sed -nE 's/.*TD_COMMANDS.*//; s/^ *X\(([a-z]+), TD_FOR_.*/\1/p' daemon/cli/command.h | paste -sd '|')
twice=$(git ls-files | grep -vE "^daemon/cli/($commands)\.c$" | grep -E '\.(c|h|cu|cuh|S)$' | sed -E 's/\.[a-zA-Z]+$//' | sort -u | awk -F/ '
    { stem = $NF; paths[stem] = paths[stem] " " $0; n[stem]++ }
    END { for (s in n) if (n[s] > 1) print s ":" paths[s] }')
if [ -n "$twice" ]; then
    printf 'stems that occur in two folders:\n%s\n' "$twice"
    exit 1
fi
