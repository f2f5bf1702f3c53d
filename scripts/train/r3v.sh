#!/usr/bin/env bash
# R3V with the published settings on the GPUs of this machine; with --tiny on the reasoning world, on a CPU.
#   bash scripts/train/r3v.sh [--tiny] [--set key=value ...]
set -euo pipefail
exec bash "$(dirname "$0")/_loop.sh" r3v "$@"
