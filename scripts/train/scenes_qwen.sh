#!/usr/bin/env bash
# Train the embedded world's Qwen2.5-VL on one GPU: base and tags for 265 s and 165 s, then the plain twin.
#   bash scripts/train/scenes_qwen.sh [OUT] [further options of python -m experiments.scene_models]
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-out/scenes-qwen}"
shift || true
exec "${PYTHON:-python}" -m experiments.scene_models --family qwen --out "$out" "$@"
