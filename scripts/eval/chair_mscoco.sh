#!/usr/bin/env bash
# The same as chair.sh, by its published name.
exec bash "$(dirname "$0")/chair.sh" "$@"
