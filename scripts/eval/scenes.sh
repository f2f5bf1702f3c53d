#!/usr/bin/env bash
# Measure how much the tagged model makes up about 500 test scenes, checking off and on, against its plain twin.
#   bash scripts/eval/scenes.sh [TAGGED] [TWIN] [OUT] [further options of python -m experiments.scenes_comparison]
# The threshold is that of the checkpoint, and 0.05 and 0.1 beside it. The same command continues a stopped run.
set -euo pipefail
cd "$(dirname "$0")/../.."
tagged="${1:-tiny-llava}"
twin="${2:-out/scenes/twin}"
out="${3:-out/eval}"
if [ ! -d "$twin" ]; then
  echo "no plain twin in $twin: train one with bash scripts/train/scenes_llava.sh, or name its folder" >&2
  exit 2
fi
shift "$(( $# < 3 ? $# : 3 ))"
exec "${PYTHON:-python}" -m experiments.scenes_comparison --tagged "$tagged" --twin "$twin" --out "$out" \
  --count 500 --thresholds 0.05 0.1 "$@"
