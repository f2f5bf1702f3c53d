#!/usr/bin/env bash
# Qwen2.5-VL-3B in full on the GPUs of this machine (published: 4), as the recipe says; a stopped run goes on.
#   bash scripts/train/qwen25_vl_3b_full.sh [--set key=value ...]
# GPUS, PARALLEL (none, ddp, fsdp, zero2, zero3), and on several machines NODES, NODE_RANK and MASTER_ADDR, MASTER_PORT.
set -euo pipefail
exec bash "$(dirname "$0")/_run.sh" qwen25_vl_3b_full zero3 "$@"
