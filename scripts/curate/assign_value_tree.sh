#!/usr/bin/env bash
# Value the beginnings of verified answers (TSST), with the published flags.
#   bash scripts/curate/assign_value_tree.sh --input scienceqa_beam_verify.jsonl --output values.json
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m scripts.curate.published_commands assign_value_tree "$@"
