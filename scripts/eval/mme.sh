#!/usr/bin/env bash
# Answer the hallucination subset of MME (the full set: reverse eval mme).
#   bash scripts/eval/mme.sh [MODEL] [OUT] [further options of reverse eval]
exec bash "$(dirname "$0")/benchmark.sh" mme-hall "$@"
