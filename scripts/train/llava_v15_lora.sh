#!/usr/bin/env bash
# LLaVA-1.5-7B with LoRA on the GPUs of this machine (published: 8), as the recipe says; a stopped run goes on.
#   bash scripts/train/llava_v15_lora.sh [--set key=value ...]
# GPUS, PARALLEL (none, ddp, fsdp, zero2, zero3), and on several machines NODES, NODE_RANK and MASTER_ADDR, MASTER_PORT.
set -euo pipefail
cd "$(dirname "$0")/../.."
gpus="${GPUS:-$({ nvidia-smi -L 2>/dev/null || true; } | wc -l)}"
nodes="${NODES:-1}"
if [ "$((gpus * nodes))" -le 1 ]; then
  exec "${PYTHON:-python}" -m reverse train llava_v15_lora "$@"
fi
where=(--standalone)
if [ "$nodes" -gt 1 ]; then
  where=(--nnodes "$nodes" --node-rank "${NODE_RANK:?}" --master-addr "${MASTER_ADDR:?}" --master-port "${MASTER_PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${where[@]}" --nproc-per-node "$gpus" -m reverse train llava_v15_lora \
  --set "compute.parallel=${PARALLEL:-zero2}" "$@"
