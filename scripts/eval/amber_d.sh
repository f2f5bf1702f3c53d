#!/usr/bin/env bash
# Answer AMBER's 14,216 yes/no questions; a stopped run goes on where it was.
#   bash scripts/eval/amber_d.sh [MODEL] [OUT] [further options of reverse eval]
# Files: `reverse eval --where amber-d`. Several GPUs: LAUNCH="torchrun --nproc-per-node 4 -m" before it.
set -euo pipefail
cd "$(dirname "$0")/../.."
model="${1:-tiny-llava}"
out="${2:-out/eval/$(basename "$model")}"
shift "$(( $# < 2 ? $# : 2 ))"
exec ${LAUNCH:-"${PYTHON:-python}" -m} reverse eval amber-d --model "$model" --out "$out" "$@"
