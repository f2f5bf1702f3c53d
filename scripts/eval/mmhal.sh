#!/usr/bin/env bash
# Answer MMHal-Bench: 96 open questions.
#   bash scripts/eval/mmhal.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" mmhal "$@"
