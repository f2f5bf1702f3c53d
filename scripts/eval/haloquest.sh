#!/usr/bin/env bash
# Answer HaloQuest: open questions, many with a false premise.
#   bash scripts/eval/haloquest.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" haloquest "$@"
