#!/usr/bin/env bash
# What the scripts beside this one have in common: RECIPE MODE [--set key=value ...], on the GPUs that can be seen.
set -euo pipefail
cd "$(dirname "$0")/../.."
recipe="$1" mode="$2"
shift 2
python="${PYTHON:-python}"
gpus="${GPUS:-$("$python" -c 'import torch; print(torch.cuda.device_count())')}"
nodes="${NODES:-1}"
if [ "$((gpus * nodes))" -le 1 ]; then
  exec "$python" -m reverse train "$recipe" "$@"
fi
where=(--standalone)
if [ "$nodes" -gt 1 ]; then
  where=(--nnodes "$nodes" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
fi
exec "$python" -m torch.distributed.run "${where[@]}" --nproc-per-node "$gpus" -m reverse train "$recipe" \
  --set "compute.parallel=${PARALLEL:-$mode}" "$@"
