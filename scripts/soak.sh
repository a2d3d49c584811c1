#!/usr/bin/env bash
# Random faults on a lab of its own: soak.sh NAME FLAGS... The record is .cache/NAME.jsonl (remove it to begin again), the
# table docs/results/NAME.md. The lab is taken down at the end, whatever happens; after a failure the nodes' logs are kept.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
shift
roseau=$PWD/bin/roseau
if [ "$(id -u)" != 0 ]; then
  echo "soak: the lab makes network namespaces: sudo is needed for it"
  exec sudo --preserve-env=PATH,HOME "$0" "$name" "$@"
fi
export ROSEAU_LAB_DIR=$PWD/.cache/labs
down() {
  local rc=$?
  if [ "$rc" != 0 ] && [ -d "$ROSEAU_LAB_DIR/$name/nodes" ]; then
    rm -rf ".cache/$name-logs"
    mkdir -p ".cache/$name-logs"
    (cd "$ROSEAU_LAB_DIR/$name" && find . -path '*/log/*' -type f -o -name 'daemon.log') | while read -r f; do
      install -D -m 644 "$ROSEAU_LAB_DIR/$name/$f" ".cache/$name-logs/$f"
    done
    echo "soak: the nodes' logs are in .cache/$name-logs"
  fi
  "$roseau" lab down --name "$name"
  exit "$rc"
}
trap down EXIT
"$roseau" lab up --name "$name"
"$roseau" drill soak --name "$name" --context "$name" --record ".cache/$name.jsonl" --report "docs/results/$name.md" "$@"
