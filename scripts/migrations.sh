#!/bin/sh
# Moves a VM RUNS times through every ordered pair of nodes and writes
# docs/results/migrations.md. Restartable: finished runs are kept in .cache; with
# WITHIN=3m it stops then, and the next call goes on. RUNS_ANEW=1 begins anew.
set -eu
cd "$(dirname "$0")/.."
keep=.cache/migrations.jsonl
lab=migrations
mkdir -p .cache
[ -z "${RUNS_ANEW:-}" ] || rm -f "$keep"
commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
if [ "$commit" != unknown ] && ! git diff --quiet HEAD -- cmd internal go.mod 2>/dev/null; then
	commit="$commit with changes"
fi
# A context of its own: the lab that a person has up stays selected.
export XDG_CONFIG_HOME="$PWD/.cache/migrations-config"
trap 'bin/roseau lab down --name $lab >/dev/null' EXIT
trap 'exit 130' INT TERM
bin/roseau lab up --name "$lab" >/dev/null
bin/roseau drill run migrations --name "$lab" --all-pairs --runs "${RUNS:-20}" --within "${WITHIN:-0}" --keep "$keep" \
	--markdown docs/results/migrations.md --commit "$commit"
