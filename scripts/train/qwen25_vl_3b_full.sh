#!/usr/bin/env bash
# Qwen2.5-VL-3B in full on the GPUs of this machine (published: 4), as the recipe says; a stopped run goes on.
#   bash scripts/train/qwen25_vl_3b_full.sh [--set key=value ...]
# GPUS, PARALLEL (none, ddp, fsdp, zero2, zero3), and on several machines NODES, NODE_RANK and MASTER_ADDR, MASTER_PORT.
set -euo pipefail
cd "$(dirname "$0")/../.."
gpus="${GPUS:-$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)}"
nodes="${NODES:-1}"
if [ "$((gpus * nodes))" -le 1 ]; then
  exec "${PYTHON:-python}" -m reverse train qwen25_vl_3b_full "$@"
fi
where=(--standalone)
if [ "$nodes" -gt 1 ]; then
  where=(--nnodes "$nodes" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${where[@]}" --nproc-per-node "$gpus" -m reverse train qwen25_vl_3b_full \
  --set "compute.parallel=${PARALLEL:-zero3}" "$@"
