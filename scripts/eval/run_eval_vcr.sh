#!/usr/bin/env bash
# Answer VCR with the models of a YAML file of TSST.
#   bash scripts/eval/run_eval_vcr.sh --yaml_path config.yaml [--out DIR]
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m scripts.eval.published_evaluation run_eval vcr "$@"
