#!/usr/bin/env bash
# Answer the hallucination subset of MME (the full set: reverse eval mme); a stopped run goes on where it was.
#   bash scripts/eval/mme.sh [MODEL] [OUT] [further options of reverse eval]
# Files: `reverse eval --where mme-hall`. Several GPUs: LAUNCH="torchrun --nproc-per-node 4 -m" before it.
set -euo pipefail
cd "$(dirname "$0")/../.."
model="${1:-tiny-llava}"
out="${2:-out/eval/$(basename "$model")}"
shift "$(( $# < 2 ? $# : 2 ))"
exec ${LAUNCH:-"${PYTHON:-python}" -m} reverse eval mme-hall --model "$model" --out "$out" "$@"
