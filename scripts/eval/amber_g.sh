#!/usr/bin/env bash
# Answer AMBER's 1,004 descriptions.
#   bash scripts/eval/amber_g.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" amber-g "$@"
