#!/usr/bin/env bash
# Answer AMBER's 14,216 yes/no questions.
#   bash scripts/eval/amber_d.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" amber-d "$@"
