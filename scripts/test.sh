#!/usr/bin/env bash
# What CI runs, printed by part. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
started=$SECONDS
parts=()
part() { # name, command...
  local name=$1 t=$SECONDS
  shift
  echo "=== $name"
  "$@"
  parts+=("$(printf '%-28s %4d s' "$name" $((SECONDS - t)))")
}
finish() {
  local rc=$?
  echo "=== time by part"
  printf '%s\n' "${parts[@]}"
  printf '%-28s %4d s\n' "all" $((SECONDS - started))
  exit $rc
}
trap finish EXIT

part "setup" scripts/setup.sh
part "build" make -s build
part "vet" go vet ./...
# One package at a time: several start real daemons and guests, and two cores are few.
part "unit tests" go test -p 1 ./...
part "simulator, ${SEEDS:-500} seeds" env ROSEAU_SIM_SEEDS="${SEEDS:-500}" go test -count=1 -timeout 20m -run TestSeeds ./internal/sim/
part "clusters of daemons" env ROSEAU_E2E=1 go test -count=1 -timeout 15m -run 'Witness|Voter|Recover|Networks' ./internal/node
part "lab: drills and kills" env ROSEAU_E2E=1 go test -p 1 -count=1 -timeout 40m -v ./test/e2e/...
