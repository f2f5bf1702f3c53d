#!/usr/bin/env bash
# Answer a benchmark with a model; the same command continues a stopped run.
#   bash scripts/eval/benchmark.sh BENCHMARK [MODEL] [OUT] [further options of reverse eval]
# Files: `reverse eval --where BENCHMARK`. Several GPUs: LAUNCH="torchrun --nproc-per-node 4 -m" before it.
set -euo pipefail
cd "$(dirname "$0")/../.."
benchmark="$1"
model="${2:-tiny-llava}"
out="${3:-out/eval/$(basename "$model")}"
shift "$(( $# < 3 ? $# : 3 ))"
exec ${LAUNCH:-"${PYTHON:-python}" -m} reverse eval "$benchmark" --model "$model" --out "$out" "$@"
