#!/usr/bin/env bash
# Does synthetic data help? One table from a folder of labelled images (metadata.jsonl with label and split) and a
# generator, or synthetic images that exist already, from here or elsewhere.
#
#   bash tools/downstream.sh --real DIR --checkpoint DIR --out DIR [--variants 5] [--gsd_m 0.3] [--steps 20] [-- MORE]
#   bash tools/downstream.sh --real DIR --synthetic DIR  --out DIR [-- MORE]
#
# MORE goes to tools/downstream.py: --encoder FOLDER, --seeds 5, --real_per_class 16, --steps 250, …
set -euo pipefail
usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; echo "error: $1" >&2; exit 2; }
real= synthetic= checkpoint= out= variants=5 gsd_m= steps=20
while [ $# -gt 0 ]; do
    case "$1" in
        --) shift; break ;;
        --real|--synthetic|--checkpoint|--out|--variants|--gsd_m|--steps)
            [ $# -ge 2 ] || usage "$1 needs a value"
            printf -v "${1#--}" %s "$2"; shift 2 ;;
        *) usage "unknown argument $1" ;;
    esac
done
[ -n "$real" ] && [ -n "$out" ] || usage "give --real and --out"
[ -n "$checkpoint$synthetic" ] || usage "give --checkpoint or --synthetic"
[ -z "$checkpoint" ] || [ -z "$synthetic" ] || usage "give --checkpoint or --synthetic, not both"

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" demo
if [ -z "$synthetic" ]; then
    synthetic="$out/synthetic"
    python "$root/sample.py" --checkpoint "$checkpoint" --condition "$real" --split train --degrade --variants "$variants" \
        --steps "$steps" ${gsd_m:+--gsd_m "$gsd_m"} --out "$synthetic"
fi
python "$root/tools/downstream.py" --real "$real" --synthetic "$synthetic" --out "$out/comparison" "$@"
