#!/usr/bin/env bash
# Train the embedded world's models on one GPU: base and tags in under eight minutes, then the plain twin.
#   bash scripts/train/scenes_llava.sh [OUT] [further options of python -m experiments.scene_models]
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-out/scenes}"
shift || true
exec "${PYTHON:-python}" -m experiments.scene_models --out "$out" "$@"
