#!/usr/bin/env bash
# The test suite, in an environment of its own making. Arguments go to pytest. With PARITY=1 every extra is installed too,
# but for those of other hardware and of no test, and the tests that need them run; otherwise they skip and say so.
#
#   bash tools/test.sh [pytest arguments]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
extras=test,demo
if [ "${PARITY:-}" = 1 ]; then
    extras=$(sed -n '/^\[options.extras_require\]/,/^\[options.entry_points/s/^\([a-z_]*\) =.*/\1/p' "$root/setup.cfg" |
        grep -vx 'cuda\|tpu\|lint\|docs' | paste -sd,)
fi
source "$root/tools/venv.sh" "$extras"
cd "$root"
exec python -m pytest "$@"
