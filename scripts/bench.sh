#!/bin/sh
# Compares a Roseau volume of three copies with Ceph (where it is installed),
# QEMU's quorum, qemu-nbd and a plain file, all on the disk of BENCH_DIR, and
# writes docs/benchmarks.md. A run that was cut off is gone on with: its figures
# are in bin/bench.state (remove it, or change --size-mib or --runtime, to begin
# again). Options go to `roseau bench`: --rounds, --jobs, --targets, --runtime.
set -eu
cd "$(dirname "$0")/.."
for tool in fio qemu-nbd; do
	command -v "$tool" >/dev/null || { echo "bench: $tool is not installed: apt install fio qemu-utils" >&2; exit 1; }
done
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ "$commit" != unknown ] && ! git diff --quiet HEAD -- cmd internal go.mod 2>/dev/null; then
	commit="$commit with changes"
fi
exec bin/roseau bench --dir "${BENCH_DIR:-${TMPDIR:-/tmp}}" --state bin/bench.state --report docs/benchmarks.md --commit "$commit" "$@"
