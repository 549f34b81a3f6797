# make help lists what there is.

MODULE  := github.com/keelson-io/keelson
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X $(MODULE)/pkg/version.version=$(VERSION) -X $(MODULE)/pkg/version.commit=$(COMMIT)

# SQLite, in C once, has memory of its own, which the race detector does not look
# at: what it adds to the code of it finds nothing, and takes half of the time.
RACE_FLAGS := -gcflags='modernc.org/sqlite/lib=-race=false -d=checkptr=0'

# Tools and what the tests against other programs build are kept here.
export KEELSON_CACHE ?= $(HOME)/.cache/keelson
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(KEELSON_CACHE)/bin/golangci-lint-$(GOLANGCI_VERSION)

# How long each fuzz target runs in fuzz-short: inputs (20000x) or time (10m).
FUZZTIME ?= 20000x

# The workloads of make bench.
BENCH_QUICK ?= put1,put200,create200,update1,update200,get200,list,list-pages,count,watch100,keepalive200
# Those of make bench-postgres.
BENCH_POSTGRES ?= create200,update200,update1,list,list-pages,count
# On the disk to measure; PostgreSQL's user must be able to reach it.
BENCH_DIR ?= /var/tmp/keelson-bench
BENCH_FLAGS ?= -dir $(BENCH_DIR) -rounds 3 -duration 2s

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build bin/keelson, one static file
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/keelson .

.PHONY: test
test: ## run the tests of this module (two minutes)
	go test -parallel 4 ./...

.PHONY: race
race: ## the same under the race detector
	go test -race $(RACE_FLAGS) -parallel 4 -timeout 20m ./...

.PHONY: lint
lint: $(GOLANGCI) ## check formatting and run the linters
	$(GOLANGCI) run ./...

$(GOLANGCI):
	mkdir -p $(KEELSON_CACHE)/bin
	cd / && GOBIN=$(KEELSON_CACHE)/bin GOFLAGS=-mod=mod go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(KEELSON_CACHE)/bin/golangci-lint $@

.PHONY: check
check: build lint test ## what every change must pass

.PHONY: fuzz-short
fuzz-short: ## run each fuzz target for FUZZTIME
	@set -e; binary=$$(mktemp); trap 'rm -f "$$binary"' EXIT; \
	for dir in $$(grep -rl '^func Fuzz' --include='*_test.go' pkg | xargs -n 1 dirname | sort -u); do \
		go test -c -fuzz . -o "$$binary" "./$$dir"; \
		for target in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' "$$dir"/*_test.go | cut -c 6-); do \
			echo "$$dir $$target"; \
			(cd "$$dir" && "$$binary" -test.run '^$$' -test.fuzz "^$$target$$" -test.fuzztime $(FUZZTIME) -test.fuzzminimizetime 2s \
				-test.fuzzcachedir "$$(go env GOCACHE)/fuzz/$(MODULE)/$$dir"); \
		done; \
	done

.PHONY: test-contract
test-contract: ## the statements of etcd's contract, against keelson and a real etcd
	$(MAKE) -C test harness contract

.PHONY: test-gateway
test-gateway: ## the JSON gateway and clientv3/concurrency, on keelson and on a real etcd
	$(MAKE) -C test gateway

.PHONY: test-differential
test-differential: ## random requests, sent to keelson and to a real etcd
	$(MAKE) -C test differential

.PHONY: soak-differential
soak-differential: ## the same for half an hour; SEQUENCES=… says how many
	$(MAKE) -C test soak-differential

.PHONY: test-etcdctl
test-etcdctl: ## a real etcdctl on keelson
	$(MAKE) -C test etcdctl

.PHONY: test-crash
test-crash: ## kill -9, pauses, full and damaged disks under load, and linearizability
	$(MAKE) -C test crash sqlite

.PHONY: test-postgres
test-postgres: ## these suites with keelson on PostgreSQL, and several instances there
	$(MAKE) -C test on-postgres postgres

.PHONY: test-in-cluster
test-in-cluster: ## these suites with keelson in a cluster of three
	$(MAKE) -C test in-cluster

.PHONY: test-cluster
test-cluster: ## clusters of SQLite nodes under faults
	$(MAKE) -C test cluster

.PHONY: soak-cluster
soak-cluster: ## these faults again and again (hours)
	$(MAKE) -C test soak-cluster

.PHONY: soak-postgres
soak-postgres: ## lessors that die or sleep, and what an hour of updates leaves behind
	KEELSON_POSTGRES=all go test -count=1 -v -run Lessor ./pkg/cmd
	KEELSON_BLOAT=1h go test -count=1 -timeout 2h -v -run TestBloat ./pkg/drivers/postgres

.PHONY: soak-crash
soak-crash: export KEELSON_CRASH_ROUNDS ?= 300
soak-crash: ## hundreds of them, and every fault of the disk and power cut (an hour)
	KEELSON_FAULTS=all go test -count=1 -timeout 3h -v -run 'Fault|PowerCut|Kill|Damage' ./pkg/drivers/sqlite
	$(MAKE) -C test soak-crash

.PHONY: test-transfer
test-transfer: ## data moved between kine, etcd and keelson, and a kube-apiserver with it
	$(MAKE) -C test transfer

.PHONY: test-docs
test-docs: ## the commands of README.md and of docs/
	$(MAKE) -C test docs

.PHONY: test-hostile
test-hostile: ## clients that mean no good: memory stays bounded, others are served
	$(MAKE) -C test hostile

.PHONY: test-restore
test-restore: ## snapshots of a real etcd, restored with keelson into SQLite, PostgreSQL and clusters
	$(MAKE) -C test restore

.PHONY: test-snapshot
test-snapshot: ## etcdctl snapshot save of keelson, and an etcd that goes on from it
	$(MAKE) -C test snapshot

.PHONY: test-apiserver
test-apiserver: ## a real kube-apiserver and kubectl on keelson
	$(MAKE) -C test apiserver

.PHONY: bench
bench: ## measure the main workloads on etcd, kine and keelson (10 minutes)
	cd bench && go run . run $(BENCH_FLAGS) -workloads '$(BENCH_QUICK)' -out results-quick.json

# A system that fails is a result of the report, not its end.
.PHONY: bench-all
bench-all: bench-prepare ## measure everything, and put the tables into bench/README.md (an hour)
	-$(MAKE) bench-main
	-$(MAKE) bench-cluster
	-$(MAKE) bench-postgres
	-$(MAKE) bench-edge
	$(MAKE) bench-report

.PHONY: bench-prepare
bench-prepare: ## load the data that the others measure on
	cd bench && go run . prepare -dir $(BENCH_DIR)
	cd bench && go run . prepare -dir $(BENCH_DIR) -systems '*-pg*' -workloads '$(BENCH_POSTGRES)'

.PHONY: bench-main
bench-main: ## measure all workloads but edge beside etcd (40 minutes)
	cd bench && go run . run $(BENCH_FLAGS) -workloads '*,-edge' -budget 37m -out results.json

.PHONY: bench-edge
bench-edge: ## measure what an idle cluster writes (10 minutes)
	cd bench && go run . run -dir $(BENCH_DIR) -workloads edge -rounds 1 -out results-edge.json

.PHONY: bench-postgres
bench-postgres: ## measure keelson beside kine on PostgreSQL (10 minutes)
	cd bench && go run . run $(BENCH_FLAGS) -systems '*-pg*,floor' -workloads '$(BENCH_POSTGRES)' -budget 9m -out results-postgres.json

.PHONY: bench-cluster
bench-cluster: ## measure three nodes beside three of etcd (15 minutes)
	cd bench && go run . run $(BENCH_FLAGS) -systems '*-cluster' -budget 14m -out results-cluster.json

.PHONY: bench-report
bench-report: ## put tables and plots of what was measured into bench/README.md
	cd bench && go run . report $$(ls results.json results-edge.json results-cluster.json results-postgres.json)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
