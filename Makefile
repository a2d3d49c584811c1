# Everything a person or a machine runs. `make help` lists it.
SHELL := /bin/bash
GO ?= go
SEEDS ?= 500
RUNS ?= 20
MINUTES ?= 10
STATES ?= 3000000
SUBSETS ?= 256
# One way to build for all targets: what one compiled, the next need not.
export GOFLAGS += -buildvcs=false -trimpath
export CGO_ENABLED := 0
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X roseau/internal/base/version.version=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z0-9-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install what is missing (Debian packages); says what and why before it asks for sudo
	@scripts/setup.sh

build: ## build bin/roseau and the probe guest's program
	@mkdir -p bin
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/roseau ./cmd/roseau
	$(GO) build -ldflags '-s -w' -o bin/roseau-probe ./cmd/roseau-probe

demo: setup build ## raise the lab, run the drill, print its table and what to try next
	@scripts/demo.sh

check: ## format, vet, lint, unit tests: before every commit
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt wants:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test ./...

test: ## everything CI runs: unit tests, simulator seeds, one lab with each drill once; budget 25 minutes
	@scripts/test.sh

unit: ## the unit tests alone
	$(GO) test ./...

sim: build ## the simulator: make sim SEEDS=1000000 (goes on after an interruption, prints progress)
	bin/roseau sim run --seeds $(SEEDS) --state bin/sim-$(VERSION).json

ha-sim: build ## the HA manager and the scheduler in simulated clusters: SEEDS small worlds, then 64 nodes with 2,000 machines
	bin/roseau sim ha --seeds $(SEEDS)
	bin/roseau sim ha --report --nodes 64 --vms 2000 --time 1m --losses 5

mutants: ## break the engine one switch at a time and show that the simulator sees each
	$(GO) run ./cmd/roseau sim mutants

model: ## search the models of own and of the hand-over, and crash states of the disk: make model STATES=3000000 SUBSETS=256 (bounds for each world and I/O boundary; minutes)
	$(GO) test ./internal/core/repl ./internal/core/vmguard -run 'TestModel' -count=1 -timeout 60m -v -model.limit $(STATES)
	ROSEAU_CRASH_SUBSETS=$(SUBSETS) $(GO) test ./internal/block/disk -run ExhaustiveCrashes -count=1 -timeout 60m -v

e2e: setup build ## clusters of daemons, then the lab, under go test; with what make test leaves out because it takes long
	ROSEAU_E2E=1 $(GO) test -count=1 -timeout 15m -parallel 1 -v ./internal/node
	ROSEAU_E2E=1 ROSEAU_E2E_LONG=1 $(GO) test -p 1 -count=1 -timeout 60m -v ./test/e2e/...

soak: setup build ## random faults on a lab with a database for MINUTES (restartable: goes on after the last round)
	@scripts/soak.sh soak --database --minutes $(MINUTES)

faults: setup build ## RUNS rounds of random faults, and as many of the control plane alone (restartable; MINUTES=3 each at most)
	@scripts/soak.sh faults --rounds $(RUNS) $(if $(filter-out file,$(origin MINUTES)),--minutes $(MINUTES))
	@scripts/soak.sh control-faults --rounds $(RUNS) --control-plane-only $(if $(filter-out file,$(origin MINUTES)),--minutes $(MINUTES))

migrations: setup build ## live migrations through every pair of nodes: make migrations RUNS=20 (restartable, WITHIN=3m)
	RUNS=$(RUNS) WITHIN=$(or $(WITHIN),0) scripts/repeat.sh migrations --all-pairs

failovers: setup build ## power cuts of a VM's node, RUNS of them and half as many of the leader's: make failovers RUNS=20 (restartable, WITHIN=3m)
	RUNS=$(RUNS) WITHIN=$(or $(WITHIN),0) scripts/repeat.sh failovers

bench: setup build ## raw file, qemu-nbd, QEMU quorum and a Roseau volume, in one run
	@scripts/bench.sh

fuzz: ## run every fuzz test: make fuzz SECONDS=60 (each)
	@scripts/fuzz.sh $(or $(filter-out 0,$(if $(filter command line environment override,$(origin SECONDS)),$(SECONDS))),60)

bench-recovery: setup build ## stalls, resync, rebuild and idle cost of a volume of three copies
	@bin/roseau bench recovery --dir "$${BENCH_DIR:-$${TMPDIR:-/tmp}}" --report docs/results/recovery.md

vuln: ## known vulnerabilities of the dependencies (needs the vulnerability database)
	$(GO) tool govulncheck ./...

clean: ## remove what build and tests made (a running lab is left alone)
	rm -rf bin .cache
