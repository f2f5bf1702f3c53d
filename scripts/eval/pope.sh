#!/usr/bin/env bash
# Answer POPE on COCO, all three settings (pope-aokvqa and pope-gqa: reverse eval pope-all); a stopped run goes on where it was.
#   bash scripts/eval/pope.sh [MODEL] [OUT] [further options of reverse eval]
# Files: `reverse eval --where pope`. Several GPUs: LAUNCH="torchrun --nproc-per-node 4 -m" before it.
set -euo pipefail
cd "$(dirname "$0")/../.."
model="${1:-tiny-llava}"
out="${2:-out/eval/$(basename "$model")}"
shift "$(( $# < 2 ? $# : 2 ))"
exec ${LAUNCH:-"${PYTHON:-python}" -m} reverse eval pope --model "$model" --out "$out" "$@"
