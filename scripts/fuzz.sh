#!/bin/bash
# Runs every fuzz test for some seconds: scripts/fuzz.sh [SECONDS [PATTERN]]. What one finds is
# kept by go test under testdata/fuzz of its package; commit it with the fix.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
pattern=${2:-.}
failed=0
while IFS=: read -r file _ line; do
	name=${line#func }
	name=${name%%(*}
	[[ "$file:$name" =~ $pattern ]] || continue
	pkg=./$(dirname "$file")
	echo "== $pkg $name, $seconds s"
	nice -n 5 "${GO:-go}" test "$pkg" -run '^$' -fuzz "^$name\$" -fuzztime "${seconds}s" -fuzzminimizetime 5s -parallel "${FUZZ_PARALLEL:-2}" | tail -n 4 || failed=1
done < <(grep -rn '^func Fuzz' --include='*_test.go' internal)
exit "$failed"
