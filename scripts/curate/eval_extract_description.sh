#!/usr/bin/env bash
# Find descriptions of pictures in published texts (SRPO), with the published flags.
#   bash scripts/curate/eval_extract_description.sh --source cot100k --input_path cot.jsonl --output_path descriptions.jsonl [--pattern P] [--content_key K]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m scripts.curate.published_commands eval_extract_description "$@"
