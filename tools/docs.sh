#!/usr/bin/env bash
# API documentation by pdoc, one page per module; a warning from pdoc is an error. rsdiff.programs is left out: its modules
# define flags on import, and some share flag names.
#
#   bash tools/docs.sh [FOLDER]        (default .cache/api)
set -euo pipefail
export RSDIFF_VENV="${RSDIFF_VENV:-.cache/lint}"
[[ "${1:-/}" = /* ]] && out="${1:-}" || out="$PWD/$1"
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" docs
cd "$root"
out="${out:-$root/.cache/api}"
rm -rf "$out"
JAX_PLATFORMS=cpu python -W error::UserWarning -m pdoc --docformat google --output-directory "$out" rsdiff '!rsdiff.programs'
