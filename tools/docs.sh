#!/usr/bin/env bash
# The pages of the API, one a module, by pdoc; a warning of it is an error. The commands are left out: their modules define
# flags when they are imported, and several have some of the same names.
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
