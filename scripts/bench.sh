#!/bin/sh
# Compares a Roseau volume of three copies with QEMU's quorum, qemu-nbd and a
# plain file, all on the disk of BENCH_DIR, and writes docs/results/bench.md.
set -eu
cd "$(dirname "$0")/.."
for tool in fio qemu-nbd; do
	command -v "$tool" >/dev/null || { echo "bench: $tool is not installed: apt install fio qemu-utils" >&2; exit 1; }
done
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ "$commit" != unknown ] && ! git diff --quiet HEAD -- cmd internal go.mod 2>/dev/null; then
	commit="$commit with changes"
fi
exec bin/roseau bench --dir "${BENCH_DIR:-${TMPDIR:-/tmp}}" --report docs/results/bench.md --commit "$commit" "$@"
