#!/usr/bin/env bash
# What scripts that train several families and seeds side by side share; to be sourced from the root of the repository.
#   start_run FOLDER COMMAND…    starts a run in the background, with its lines in FOLDER.log
#   wait_for_runs                waits for all of them, and fails if one has failed
# FAMILIES and SEEDS choose the runs. Sets: python, families, seeds, workers (of each run), folders.
# All runs end when the script is stopped.
python=${PYTHON:-python}
read -ra families <<< "${FAMILIES:-qwen llava}"
read -ra seeds <<< "${SEEDS:-0 1 2}"
workers=$(($(nproc --all) * 2 / (${#families[@]} * ${#seeds[@]})))
workers=$((workers > 1 ? workers : 1))
folders=() processes=()
trap 'kill "${processes[@]}" 2> /dev/null; exit 143' INT TERM

start_run() {
  local folder=$1
  shift
  "$@" > "$folder.log" 2>&1 &
  folders+=("$folder") processes+=("$!")
  echo "$folder: process $!, lines in $folder.log"
}

wait_for_runs() {
  local failed=0 number
  for number in "${!processes[@]}"; do
    wait "${processes[$number]}" || {
      echo "${folders[$number]} failed:" >&2
      tail -n 5 "${folders[$number]}.log" >&2
      failed=1
    }
  done
  return "$failed"
}
