#!/usr/bin/env bash
# Answer questions and sort the answers into right and wrong ones (SRPO), with the published flags.
#   bash scripts/curate/eval_answer.sh --input_path questions.jsonl --model_type local --model tiny-llava --image_dir pictures [--correct_final F] [--incorrect_final F]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m scripts.curate.published_commands eval_answer "$@"
