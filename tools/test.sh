#!/usr/bin/env bash
# The test suite, in an environment of its own making. Arguments go to pytest. With PARITY=1, as in CI, torch and the
# optional extras are installed too, and the tests that need them run; otherwise they skip and say so.
#
#   bash tools/test.sh [pytest arguments]
set -euo pipefail
extras=test,demo
if [ "${PARITY:-}" = 1 ]; then extras=$extras,parity,bench,geo,metrics,tensorboard; fi
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" "$extras"
cd "$root"
exec python -m pytest "$@"
