#!/usr/bin/env bash
# What the scripts of loops have in common: SYSTEM [--tiny] [options of `reverse selftrain SYSTEM`].
# TINY_PICTURES (default 40) is the number of pictures to train on with --tiny.
set -euo pipefail
cd "$(dirname "$0")/../.."
system="$1"
shift
python="${PYTHON:-python}"
if [ "${1:-}" != "--tiny" ]; then
  exec "$python" -m reverse selftrain "$system" "$system" "$@"
fi
shift
data="out/$system-tiny-data"
count="${TINY_PICTURES:-40}"
"$python" -m reverse data reasoning "$data/train" --split train --count "$count"
"$python" -m reverse data reasoning "$data/test" --split test --count "$((count / 4 + 1))"
exec "$python" -m reverse selftrain "$system" "${system}_tiny" "$@"
