#!/usr/bin/env bash
# Runs the test suite in an environment that it creates. Arguments go to pytest. With PARITY=1 it also installs all extras,
# except those for other hardware or unused by tests, and runs the tests that need them; otherwise these skip with a reason.
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
