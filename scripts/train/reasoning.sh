#!/usr/bin/env bash
# Train models of the reasoning world and measure every mode, all seeds and families side by side on one GPU.
#   bash scripts/train/reasoning.sh OUT [options of python -m experiments.reasoning]
#   FAMILIES="qwen" SEEDS="0 1" bash scripts/train/reasoning.sh out/reasoning
# Runs that are finished are not repeated. The claims of all seeds go to OUT/modes.json. Relative paths begin at the
# root of the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?name a folder for the runs: bash scripts/train/reasoning.sh out/reasoning}
shift
source scripts/train/_seeds.sh
mkdir -p "$out"
for family in "${families[@]}"; do
  for seed in "${seeds[@]}"; do
    start_run "$out/$family-$seed" "$python" -m experiments.reasoning --family "$family" --seed "$seed" \
      --out "$out/$family-$seed" --shared "$out/rows" --workers "$workers" "$@"
  done
done
wait_for_runs
for folder in "${folders[@]}"; do
  [[ -f "$folder/report-one.json" ]] || { echo "$folder has no report yet: the stages answer and report come next"; exit 0; }
done
"$python" -m experiments.reasoning.pooled_seeds "${folders[@]}" --out "$out/modes.json"
