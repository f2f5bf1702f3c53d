#!/usr/bin/env bash
# Answer POPE on COCO, all three settings (pope-aokvqa and pope-gqa too: reverse eval pope-all).
#   bash scripts/eval/pope.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" pope "$@"
