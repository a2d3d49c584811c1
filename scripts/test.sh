#!/usr/bin/env bash
# What CI runs, printed by part, with what failed at the end. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
# What computes and waits for nothing real. It runs beside itself on all cores; the rest starts daemons
# and guests, or keeps real time, and runs one package at a time: two cores are few.
computes='^roseau/internal/(core/.*|sim|sim/hasim|block/disk)$'
started=$SECONDS
parts=()
log=$(mktemp)
part() { # name, command...
  name=$1 began=$SECONDS
  shift
  echo "=== $name"
  "$@" 2>&1 | tee "$log"
  took
}
took() { parts+=("$(printf '%-28s %4d s' "$name" $((SECONDS - began)))"); }
finish() {
  local rc=$?
  [ $rc = 0 ] || took
  echo "=== time by part"
  printf '%s\n' "${parts[@]}"
  printf '%-28s %4d s\n' "all" $((SECONDS - started))
  if [ $rc != 0 ]; then
    echo "=== what failed: $name"
    awk -f scripts/failed.awk "$log"
  fi
  rm -f "$log"
  exit $rc
}
trap finish EXIT

part "setup" scripts/setup.sh
part "build" make -s build
part "vet" go vet ./...
# Vet was all of it: the tests need not repeat the half that they know.
part "unit tests that compute" env GOGC=200 go test -vet=off $(go list ./... | grep -E "$computes")
part "unit tests" go test -vet=off -p 1 $(go list ./... | grep -vE "$computes|^roseau/internal/node$")
part "simulator, ${SEEDS:-500} seeds" env GOGC=200 ROSEAU_SIM_SEEDS="${SEEDS:-500}" go test -vet=off -count=1 -timeout 20m -run TestSeeds ./internal/sim/
part "clusters of daemons" env ROSEAU_E2E=1 go test -vet=off -count=1 -timeout 15m -parallel 1 ./internal/node
part "lab: drills and kills" env ROSEAU_E2E=1 go test -vet=off -p 1 -count=1 -timeout 40m -v ./test/e2e/...
