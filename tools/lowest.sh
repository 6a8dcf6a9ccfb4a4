#!/usr/bin/env bash
# A selection of the tests with the lowest versions that setup.cfg allows, in a separate environment.
#
#   bash tools/lowest.sh
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export RSDIFF_VENV="${RSDIFF_VENV:-$root/.cache/lowest}" CONSTRAINTS="$root/.cache/lowest.txt"
mkdir -p "$root/.cache"
"${PYTHON:-python3}" "$root/tools/lowest.py" > "$CONSTRAINTS"
source "$root/tools/venv.sh" test
cd "$root"
# covers each library: networks, checkpoints, arrays on disk, configs, images
exec python -m pytest tests/test_imports.py tests/test_schedule.py tests/test_solvers.py tests/test_config.py \
    tests/test_files.py tests/test_mesh.py tests/test_folder.py tests/test_unet.py::test_every_field_matters \
    tests/test_mosaic.py::test_the_group_is_zarr_v3_as_others_read_it \
    tests/integration/test_training.py::test_four_steps_are_two_and_a_restore_and_two "$@"
