#!/usr/bin/env bash
# Random faults on a lab of its own: soak.sh NAME FLAGS... The record is .cache/NAME.jsonl (remove it to begin again), the
# table docs/results/NAME.md. The lab is taken down at the end, whatever happens.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
roseau=$PWD/bin/roseau
if [ "$(id -u)" != 0 ]; then
  echo "soak: the lab makes network namespaces: sudo is needed for it"
  exec sudo --preserve-env=PATH,HOME "$0" "$name" "$@"
fi
trap '"$roseau" lab down --name "$name"' EXIT
"$roseau" lab up --name "$name"
"$roseau" drill soak --name "$name" --context "$name" --record ".cache/$name.jsonl" --report "docs/results/$name.md" "$@"
