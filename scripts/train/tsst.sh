#!/usr/bin/env bash
# TSST with the published settings on the GPUs of this machine; with --tiny on the reasoning world, on a CPU.
#   bash scripts/train/tsst.sh [--tiny] [--set key=value ...]
set -euo pipefail
exec bash "$(dirname "$0")/_loop.sh" tsst "$@"
