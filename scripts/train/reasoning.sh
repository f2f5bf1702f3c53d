#!/usr/bin/env bash
# Train models of the reasoning world and measure every mode, all seeds and families side by side on one GPU.
#   bash scripts/train/reasoning.sh OUT [options of python -m experiments.reasoning]
#   FAMILIES="qwen" SEEDS="0 1" ANSWERING=3 bash scripts/train/reasoning.sh out/reasoning
# The options --stages, --family, --seed, --out and --shared are set by this script.
# ANSWERING: processes that answer with one model as soon as it is trained, while its baseline trains; 2 by default.
# PAUSE: seconds between the starts of two families, so that one trains while the other makes rows; 0 by default.
# Where several processes share a GPU, NVIDIA's MPS lets them compute at the same time: start it before.
# Runs that are finished are not repeated. The claims of all seeds go to OUT/modes.json. Relative paths begin at the
# root of the repository.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:?name a folder for the runs: bash scripts/train/reasoning.sh out/reasoning}
shift
source scripts/train/_seeds.sh
mkdir -p "$out"

# Trains one model and answers with it; the arguments are those of every stage.
run_model() {
  local folder=$1 trainer number answering=()
  shift
  trap 'kill $(jobs -p) 2> /dev/null; exit 143' INT TERM
  "$python" -m experiments.reasoning --workers "$workers" "$@" --stages init,base,sample,one,greedy &
  trainer=$!
  until grep -qE '^one: ([0-9.]+ s|finished before), in ' "$folder.log"; do
    kill -0 "$trainer" 2> /dev/null || break
    sleep 1
  done
  # A trainer that has ended before its model is there has failed; else it goes on with the baseline.
  grep -qE '^one: ([0-9.]+ s|finished before), in ' "$folder.log" || { wait "$trainer"; return; }
  for ((number = 0; number < ${ANSWERING:-2}; number++)); do
    "$python" -m experiments.reasoning --workers 1 "$@" --stages answer &
    answering+=("$!")
  done
  for number in "$trainer" "${answering[@]}"; do
    wait "$number" || { kill $(jobs -p) 2> /dev/null; return 1; }
  done
  exec "$python" -m experiments.reasoning --workers 1 "$@" --stages answer,report
}

for family in "${families[@]}"; do
  if [[ ${#folders[@]} -gt 0 ]]; then sleep "${PAUSE:-0}" & wait "$!"; fi
  for seed in "${seeds[@]}"; do
    folder=$out/$family-$seed
    start_run "$folder" run_model "$folder" "$@" --family "$family" --seed "$seed" --out "$folder" --shared "$out/rows"
  done
done
wait_for_runs
"$python" -m experiments.reasoning.pooled_seeds "${folders[@]}" --out "$out/modes.json"
