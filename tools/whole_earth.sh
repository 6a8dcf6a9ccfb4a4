#!/usr/bin/env bash
# The whole Earth: Blue Marble reduced to 118 km per pixel, enlarged 16× in two stages and joined at the dateline. Writes a
# picture, a page to pan and zoom (OUT/mosaic/viewer/index.html), and a seam report with the real image as control. Run it
# again to continue.
#
#   bash tools/whole_earth.sh [OUT] [CHECKPOINT]          (default runs/whole_earth and weights/earth)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" demo
out=${1:-$root/runs/whole_earth} checkpoint=${2:-$root/weights/earth}
mkdir -p "$out"
cd "$root"
gsd_m=$(python - "$out" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from rsdiff.data import blue_marble
from rsdiff.data.images import write_image

out, earth = Path(sys.argv[1]), blue_marble.load()
height, width = (round(side / 16) for side in earth.shape[:2])
earth_of = lambda side, filter: np.asarray(Image.fromarray(earth).resize((side * width, side * height), filter))
write_image(out / 'real.png', earth_of(16, Image.Resampling.BICUBIC))  # 8 px wider than the original
write_image(out / 'condition.png', earth_of(1, Image.Resampling.BOX))
print(f'{blue_marble.GSD_M * earth.shape[1] / width:.1f}')
PYTHON
)
python sample.py --checkpoint "$checkpoint" --condition "$out/condition.png" --gsd_m "$gsd_m" --stages 2 --tiles --wrap_x \
    --format png,viewer --out "$out/mosaic"
python tools/seam_report.py "$out/mosaic" --control real="$out/real.png"
