#!/usr/bin/env bash
# Formatter, linter and type checker, as CI runs them, in a separate environment. It includes the extras whose packages
# rsdiff imports, because pyright reads their types. `ruff format` and `ruff check --fix` fix what the first two report.
#
#   bash tools/lint.sh
set -euo pipefail
export RSDIFF_VENV="${RSDIFF_VENV:-.cache/lint}"
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" lint,geo,hf,tensorboard
cd "$root"
failed=0
ruff format --check || failed=1
ruff check || failed=1
pyright || failed=1
exit $failed
