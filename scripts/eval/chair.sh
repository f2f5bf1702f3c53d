#!/usr/bin/env bash
# Answer 500 captions of COCO pictures (CHAIR).
#   bash scripts/eval/chair.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" chair "$@"
