#!/usr/bin/env bash
# Train models of the reasoning world and measure every mode, all seeds and families side by side on one GPU.
#   bash scripts/train/reasoning.sh OUT [options of python -m experiments.reasoning but --stages]
#   FAMILIES="qwen" SEEDS="0 1" ANSWERING=3 bash scripts/train/reasoning.sh out/reasoning
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
  local folder=$1 trainer number
  shift
  trap 'kill $(jobs -p) 2> /dev/null' TERM INT
  "$python" -m experiments.reasoning "$@" --workers "$workers" --stages init,base,sample,one,greedy &
  trainer=$!
  until grep -qE '^one: ([0-9.]+ s|finished before), in ' "$folder.log"; do
    kill -0 "$trainer" 2> /dev/null || break
    sleep 1
  done
  local answering=()
  for ((number = 0; number < ${ANSWERING:-2}; number++)); do
    "$python" -m experiments.reasoning "$@" --workers 1 --stages answer &
    answering+=("$!")
  done
  wait "$trainer" || { kill "${answering[@]}" 2> /dev/null; return 1; }
  for number in "${answering[@]}"; do wait "$number" || return 1; done
  "$python" -m experiments.reasoning "$@" --workers 1 --stages answer,report
}

for family in "${families[@]}"; do
  [[ ${#folders[@]} -eq 0 ]] || sleep "${PAUSE:-0}"
  for seed in "${seeds[@]}"; do
    folder=$out/$family-$seed
    start_run "$folder" run_model "$folder" --family "$family" --seed "$seed" --out "$folder" --shared "$out/rows" "$@"
  done
done
wait_for_runs
"$python" -m experiments.reasoning.pooled_seeds "${folders[@]}" --out "$out/modes.json"
