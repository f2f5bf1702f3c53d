#!/usr/bin/env bash
# Self-training from the bases that scripts/train/reasoning.sh has made, side by side on one GPU.
#   bash scripts/train/selftraining.sh BASES OUT [options of python -m experiments.selftraining]
#   FAMILIES="qwen" SEEDS="0 1" bash scripts/train/selftraining.sh out/reasoning out/selftraining --compile
# Runs that are finished are not repeated. The claims of all seeds go to OUT/selftraining.json. Relative paths begin at
# the root of the repository. Later options replace those below, which suit a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
usage='name the folder of the bases and one for the runs: bash scripts/train/selftraining.sh out/reasoning out/selftraining'
bases=${1:?$usage} out=${2:?$usage}
shift 2
source scripts/train/_seeds.sh
mkdir -p "$out"
for family in "${families[@]}"; do
  for seed in "${seeds[@]}"; do
    start_run "$out/$family-$seed" "$python" -m experiments.selftraining --start "$bases/$family-$seed/base" --untagged \
      --seed "$seed" --out "$out/$family-$seed" --pictures 8000 --steps 1500 --batch-pictures 48 --lr 1e-3 --batch 4096 \
      --workers "$workers" "$@"
  done
done
wait_for_runs
for family in "${families[@]}"; do
  own=()
  for seed in "${seeds[@]}"; do own+=("$out/$family-$seed"); done
  "$python" -m experiments.selftraining.loop_claims "${own[@]}" --name "$family" --out "$out/selftraining.json"
done
