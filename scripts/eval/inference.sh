#!/usr/bin/env bash
# Answer MathVista and check each answer in a second turn, with the published flags of LLaVA-SCo's inference.py.
#   bash scripts/eval/inference.sh --model_name MODEL [--temperature 0.7] [--top_p 0.9] [--data DIR] [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m scripts.eval.published_evaluation inference "$@"
