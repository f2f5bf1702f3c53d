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
python=${PYTHON:-python}
read -ra families <<< "${FAMILIES:-qwen llava}"
read -ra seeds <<< "${SEEDS:-0 1 2}"
runs=$((${#families[@]} * ${#seeds[@]}))
workers=$(($(nproc --all) * 2 / runs))
folders=() processes=()
mkdir -p "$out"
for family in "${families[@]}"; do
  for seed in "${seeds[@]}"; do
    folder="$out/$family-$seed"
    "$python" -m experiments.reasoning --family "$family" --seed "$seed" --out "$folder" --shared "$out/rows" \
      --workers "$((workers > 1 ? workers : 1))" "$@" > "$folder.log" 2>&1 &
    folders+=("$folder") processes+=("$!")
    echo "$folder: process $!, lines in $folder.log"
  done
done
trap 'kill "${processes[@]}" 2> /dev/null' INT TERM
failed=0
for number in "${!processes[@]}"; do
  wait "${processes[$number]}" || { echo "${folders[$number]} failed:" >&2; tail -n 5 "${folders[$number]}.log" >&2; failed=1; }
done
((failed == 0))
for folder in "${folders[@]}"; do
  [[ -f "$folder/report-one.json" ]] || { echo "$folder has no report yet: the stages answer and report come next"; exit 0; }
done
"$python" -m experiments.reasoning.pooled_seeds "${folders[@]}" --out "$out/modes.json"
