#!/usr/bin/env bash
# Does synthetic data help? One report from a folder of labelled images (metadata.jsonl with label and split) and either a
# generator or existing synthetic images from any source (docs/downstream.md). Run it again to continue.
#
#   bash tools/downstream.sh --real DIR --checkpoint DIR|NAME --out DIR [--variants 5] [--gsd_m 0.3]
#                            [--steps 20] [--solver ddim|dpm++2m] [--strength 1] [MORE]
#   bash tools/downstream.sh --real DIR --synthetic DIR  --out DIR [MORE]
#
# --variants (images per training image), --gsd_m (metres per pixel, if the manifest does not give it), --steps (network
# evaluations per image), --solver and --strength (below 1: start from the noised real image) are flags of sample.py. They
# need --checkpoint.
# MORE: --encoder embedded|tiny|FOLDER|HUB_NAME (a CLIP or SigLIP), --seeds 5, --methods LIST, --jobs N, --preset metaearth
# (150 real images per class and five synthetic images of each, as Yu et al. 2024 on seven classes), and after -- any other
# flag of tools/downstream.py, such as -- --steps 250 (optimiser steps). The report is OUT/comparison/report.html.
# --problem super_resolution asks the same of networks that enlarge images four times. MORE is then --seeds, --jobs, and after -- flags of
# tools/downstream_super_resolution.py; the report is OUT/comparison/table.md.
set -euo pipefail
refuse() { echo "error: $1; see --help" >&2; exit 2; }
real='' synthetic='' checkpoint='' out='' encoder='' preset='' problem=classification
sampling=() comparing=()
while [ $# -gt 0 ]; do
    case "$1" in
        --) shift; comparing+=("$@"); break ;;
        -h|--help) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit ;;
        --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}"; continue ;;
    esac
    case "$1" in
        --real|--synthetic|--checkpoint|--out|--variants|--gsd_m|--steps|--solver|--strength|--encoder|--seeds|--methods|--jobs|--preset|--problem)
            [ $# -ge 2 ] && [ -n "$2" ] && [ "${2#--}" = "$2" ] || refuse "$1 needs a value" ;;
        *) refuse "unknown argument $1" ;;
    esac
    case "$1" in
        --real|--synthetic|--checkpoint|--out|--encoder|--preset|--problem) printf -v "${1#--}" %s "$2" ;;
        --variants|--gsd_m|--steps|--solver|--strength) sampling+=("$1" "$2") ;;
        *) comparing+=("$1" "$2") ;;
    esac
    shift 2
done
[ -n "$real" ] && [ -n "$out" ] || refuse "give --real and --out"
case "$preset" in
    '') ;;
    metaearth) comparing=(--real_per_class 150 --ratios 5 ${comparing[@]+"${comparing[@]}"}) ;;  # explicit flags override the preset
    *) refuse "--preset $preset: the only preset is metaearth" ;;
esac
case "$problem" in
    classification) tool=downstream.py; comparing=(--encoder "${encoder:-embedded}" ${comparing[@]+"${comparing[@]}"}) ;;
    super_resolution) tool=downstream_super_resolution.py; [ -z "$encoder" ] || refuse "--encoder is for --problem classification" ;;
    *) refuse "--problem $problem: there are classification and super_resolution" ;;
esac
[ -n "$checkpoint$synthetic" ] || refuse "give --checkpoint or --synthetic"
[ -z "$checkpoint" ] || [ -z "$synthetic" ] || refuse "give --checkpoint or --synthetic, not both"
[ -n "$checkpoint" ] || [ ${#sampling[@]} = 0 ] || refuse "${sampling[0]} needs --checkpoint; $synthetic holds finished images"
for folder in "$real" "$synthetic"; do
    [ -z "$folder" ] || [ -d "$folder" ] || [[ "$folder" = *://* ]] || refuse "$folder: no such folder"
done

# shellcheck source=tools/venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" demo,metrics
if [ -n "$checkpoint" ]; then
    synthetic="$out/synthetic"
    # later flags override earlier ones
    python "$root/sample.py" --checkpoint "$checkpoint" --condition "$real" --split train --degrade --variants 5 --steps 20 \
        --out "$synthetic" ${sampling[@]+"${sampling[@]}"}
fi
python "$root/tools/$tool" --real "$real" --synthetic "$synthetic" --out "$out/comparison" \
    ${comparing[@]+"${comparing[@]}"}
