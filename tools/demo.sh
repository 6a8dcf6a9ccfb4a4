#!/usr/bin/env bash
# The whole pipeline on NASA Blue Marble: train a generator, cascade it over a held-out part of the Earth, make labelled
# images, and test whether they help a classifier. Run it again to continue after an interruption.
#
#   bash tools/demo.sh [OUT [CHECKPOINT]]        (default OUT runs/demo; a CHECKPOINT, such as weights/earth, skips training)
set -euo pipefail
absolute() { [[ "$1" = /* ]] && echo "$1" || echo "$PWD/$1"; }
out="$(absolute "${1:-runs/demo}")"
generator="$(absolute "${2:-$out/generator}")"
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" demo
cd "$root"
started=$(date +%s)
say() { printf '\n== %s\n' "$1"; }

say "1/6 cutting the held-out region and the scene task out of Blue Marble"
python tools/demo.py --step prepare --out "$out"

if [ $# -lt 2 ]; then
    say "2/6 training the generator"
    python train.py --config configs/demo.py --workdir "$generator"
    # a run that was asked to stop exits with 0, but is not finished
    grep -q '"finished": true' "$generator/train.json" || { echo "stopped; run it again to continue" >&2; exit 130; }
fi

say "3/6 118 km per pixel to 7.4 km: two stages of sliding windows"
python sample.py --checkpoint "$generator" --condition "$out/condition.png" --gsd_m "$(cat "$out/condition_gsd_m")" \
    --stages 2 --tiles --noise anchored --out "$out/mosaic"

say "4/6 labelled synthetic images: each training chip degraded and regenerated five times"
python sample.py --checkpoint "$generator" --condition "$out/regions" --split train --degrade --variants 5 \
    --out "$out/synthetic"

say "5/6 does it help? real, synthetic, and both, five seeds each"
python tools/downstream.py --real "$out/regions" --synthetic "$out/synthetic" --out "$out/downstream" \
    --encoder tiny --arms real,synthetic,real+synthetic --ratios 5

say "6/6 summary"
python tools/demo.py --step report --out "$out" --seconds "$(( $(date +%s) - started ))"
