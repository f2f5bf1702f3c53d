#!/usr/bin/env bash
# LLaVA-MORE-8B with LoRA on the GPUs of this machine (published: 8), as the recipe says; a stopped run goes on.
#   bash scripts/train/llava_more_lora.sh [--set key=value ...]
# GPUS, PARALLEL (none, ddp, fsdp, zero2, zero3), and on several machines NODES, NODE_RANK and MASTER_ADDR, MASTER_PORT.
set -euo pipefail
exec bash "$(dirname "$0")/_run.sh" llava_more_lora zero2 "$@"
