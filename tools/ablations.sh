#!/usr/bin/env bash
# MetaEarth's four ablations, small: cascade, resolution branch, degradation (docs/ablations.md), and overlap and noise of windows
# (docs/mosaic_ablation.md). Run it again to continue.
#
#   bash tools/ablations.sh DATA [OUT] [PAGES]        (DATA: an image folder with splits and gsd_m; default runs/ablations, OUT)
set -euo pipefail
[ $# -ge 1 ] || { echo 'error: give the image folder; see the head of tools/ablations.sh' >&2; exit 2; }
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" demo,metrics
data=$1 out=${2:-$root/runs/ablations}
pages=${3:-$out}
python "$root/tools/ablate_mosaic.py" --out "$out/mosaic" --group overlap --group noise
python "$root/tools/ablate_metaearth.py" --data "$data" --out "$out/generators" --pages "$pages"
