#!/bin/sh
# Runs a drill that repeats, on a lab of its own, and writes docs/results/DRILL.md:
# repeat.sh DRILL FLAGS... Restartable: finished runs are kept in .cache; with
# WITHIN=3m it stops then, and the next call goes on. RUNS_ANEW=1 begins anew.
set -eu
cd "$(dirname "$0")/.."
drill=$1
shift
keep=.cache/$drill.jsonl
mkdir -p .cache
[ -z "${RUNS_ANEW:-}" ] || rm -f "$keep"
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ "$commit" != unknown ] && ! git diff --quiet HEAD -- cmd internal go.mod 2>/dev/null; then
	commit="$commit with changes"
fi
# A context of its own: the lab that a person has up stays selected.
export XDG_CONFIG_HOME="$PWD/.cache/$drill-config"
trap 'bin/roseau lab down --name $drill >/dev/null' EXIT
trap 'exit 130' INT TERM
bin/roseau lab up --name "$drill" >/dev/null
bin/roseau drill run "$drill" --name "$drill" --runs "${RUNS:-20}" --within "${WITHIN:-0}" --keep "$keep" \
	--markdown "docs/results/$drill.md" --commit "$commit" "$@"
