#!/usr/bin/env bash
# Reflect on answers (SRPO), with the published flags. ENDPOINT_URL, DEPLOYMENT_NAME, API_KEY and API_VERSION are read.
#   bash scripts/curate/eval_reflection.sh --input_path incorrect_answers.jsonl --model o4-mini --platform Azure --image_dir pictures [--reflection_final F]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m scripts.curate.published_commands eval_reflection "$@"
