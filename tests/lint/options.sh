#!/bin/bash
# The README's table of options, between <!-- options --> and <!-- /options -->, is what the program prints.
set -euo pipefail
cd "$(dirname "$0")/../.."
tensord=${TD_BUILD:-build}/tensord
if [ ! -f README.md ] || ! grep -q '^<!-- options -->$' README.md; then
    exit 0
fi
if ! grep -q '^<!-- /options -->$' README.md; then
    echo "README.md has <!-- options --> but no <!-- /options -->"
    exit 1
fi
if ! diff <(sed -n '/^<!-- options -->$/,/^<!-- \/options -->$/p' README.md | grep '^|') \
    <("$tensord" --help-markdown); then
    echo "README.md's options differ from '$tensord --help-markdown'"
    exit 1
fi
