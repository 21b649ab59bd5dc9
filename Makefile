# fournines: `make` lists the targets.
SHELL := /bin/bash
BIN   := bin/fournines
TOOLS := $(CURDIR)/.tools
# What `fournines --version` says: the commit, or "dev" outside a clone.
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)

.DEFAULT_GOAL := help
.PHONY: help setup setup-test setup-lint build web up down status test lint check vulncheck licences generate fuzz fuzz-ci setup-bench bench-gateway bench-gateway-micro bench-overload bench-pgproxy bench-pgproxy-micro bench-import bench-splitting bench-cache bench-redis bench-redis-micro bench-zones drill-gateway soak soak-gateway soak-postgres accuracy-limits soak-redis-failover soak-celery soak-redisproxy soak-splitting clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install the servers that a stack needs (quick when nothing is missing)
	@scripts/setup.sh

setup-test: ## setup, and the clients that the tests use
	@scripts/setup.sh --test

setup-lint: ## install the linter into .tools/bin
	@scripts/setup.sh --lint

setup-bench: ## setup, and the proxies that the benchmarks compare with
	@scripts/setup.sh --bench

build: ## build bin/fournines
	@# -buildvcs asks git, which refuses a clone that belongs to somebody else.
	go build -buildvcs=false -trimpath -ldflags "-X fournines/internal/cli.version=$(VERSION)" -o $(BIN) ./cmd/fournines

# dist is committed, so that a build needs no Node; see web/README.md.
web: setup-test ## build the console's page into web/dist, after a change in web/
	cd web && npm run build

up: setup build ## start the whole stack on this machine and show it
	$(BIN) up --detach

down: build ## stop the stack; its data stays
	$(BIN) down

status: build ## show what runs
	$(BIN) status

test: setup-test build ## run every test against real servers
	FOURNINES_REQUIRE_SERVERS=1 scripts/test.sh

lint: setup-lint ## gofmt, vet and golangci-lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not gofmt-ed:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(TOOLS)/bin/golangci-lint run ./...

check: lint licences vulncheck ## lint, licence check, known vulnerabilities, tidy module files, generated files
	go mod tidy -diff
	go mod verify

vulncheck: ## look for known vulnerabilities in what we use
	@scripts/vulncheck.sh

licences: ## check that every dependency has a licence that Apache-2.0 can carry
	go test -count=1 -run "Licences|Dependency" ./test/house

generate: ## write the generated pages again
	go generate ./...

fuzz: ## run each fuzz target for a minute
	@scripts/fuzz.sh 60s

fuzz-ci: ## the same for the parsers of SSE and RESP and the classification of requests, 15 s for that of SQL
	@scripts/fuzz.sh 60s ./internal/sse ./internal/resp ./gateway/dify
	@scripts/fuzz.sh 15s ./pgproxy/route

# Side by side with nginx, HAProxy, Envoy, Caddy and Traefik, as far as they are
# installed (make setup-bench). One row against nginx alone, while working on it:
#   make bench-gateway ARGS="-rows sse_cpu_us_per_event -peers nginx -runs 3 -o /tmp/events.json"
# and with another program of ours, "-ours PATH"; see bench/README.md.
bench-gateway: build ## the gateway side by side with other proxies (11 min; ARGS=-quick: 1 min)
	go build -buildvcs=false -o bin/bench-gateway ./bench/gateway
	bin/bench-gateway $(ARGS)

bench-overload: ## 1 to 10 times the capacity, with overload protection and without (14 min; ARGS=-check: fail when a goal is missed)
	go run ./bench/overload $(ARGS)

bench-gateway-micro: ## Go benchmarks of the gateway
	go test -run '^$$' -bench . -benchmem ./gateway/...

# Side by side with PgBouncer, Pgpool-II, HAProxy and no proxy. One row while
# working on it: make bench-pgproxy ARGS="-rows select_only_tps_50_clients -peers
# pgbouncer -runs 3 -o /tmp/select.json"
bench-pgproxy: build ## pgproxy side by side with other proxies (25 min; ARGS=-quick: 1 min)
	go build -buildvcs=false -o bin/bench-pgproxy ./bench/pgproxy
	bin/bench-pgproxy $(ARGS)

bench-import: build ## chat reads beside a bulk import, through pgproxy and on a single server (5 min; ARGS=-quick: 1 min)
	go build -buildvcs=false -o bin/bench-import ./bench/imports
	bin/bench-import $(ARGS)

bench-splitting: build ## what reads on standbys cost in each mode, with 0 and 30 ms between zones (15 min; ARGS=-quick: 1 min)
	go build -buildvcs=false -o bin/bench-splitting ./bench/splitting
	bin/bench-splitting $(ARGS)

bench-pgproxy-micro: ## Go benchmarks of pgproxy: statements through it and direct
	go test -run '^$$' -bench . -benchmem ./pgproxy/...

# A public trace too: make bench-cache ARGS="-trace FILE"; see bench/README.md.
bench-cache: ## the cache of retrievals: hit rates beside the optimum, what a hit costs, a backend of 50 a second (2 min; ARGS=-quick: 20 s)
	go run ./bench/cache $(ARGS)

# Side by side with Envoy's Redis filter and a client that knows the cluster. One
# row while working on it: make bench-redis ARGS="-rows mget10_p1_50_clients_ops
# -peers envoy -runs 3 -o /tmp/mget.json"
bench-redis: build ## redisproxy side by side with Envoy and a cluster client (6 min; ARGS=-quick: 1 min)
	go build -buildvcs=false -o bin/bench-redis ./bench/redis
	bin/bench-redis $(ARGS)

bench-redis-micro: ## Go benchmarks of redisproxy: commands through it and direct
	go test -run '^$$' -bench . -benchmem ./redisproxy/...

soak: setup-test build ## ten minutes of load and faults on a stack of its own
	FOURNINES_REQUIRE_SERVERS=1 go test -count=1 -timeout 40m -tags soak -run Soak -v ./test/stack

# One fault, once, while working on it:
#   make drill-gateway ARGS="-only zone-cut -repeat 1 -o '' -table ''"
drill-gateway: build ## the gateway's fault table: every fault ten times (25 min; root for zone faults)
	go build -buildvcs=false -o bin/gatewaydrill ./test/gatewaydrill/cmd
	bin/gatewaydrill faults -o bench/results/gateway-faults.json -table docs/gateway.md $(ARGS)

bench-zones: build ## what 30 ms between zones add to a request (3 min, root)
	go build -buildvcs=false -o bin/gatewaydrill ./test/gatewaydrill/cmd
	bin/gatewaydrill zones -o bench/results/zones.json -table docs/gateway.md $(ARGS)

accuracy-limits: setup-test ## what two gateways admit together in a minute, also with Redis away
	FOURNINES_REQUIRE_SERVERS=1 go test -count=1 -timeout 10m -tags soak -run "TwoGateways|RedisAway|MasterDies" -v ./gateway/limit

soak-gateway: build ## ten minutes of load and faults: gateways must not grow
	go build -buildvcs=false -o bin/gatewaydrill ./test/gatewaydrill/cmd
	bin/gatewaydrill soak $(ARGS)

# One fault, once, while working on it:
#   make soak-postgres ARGS="-only zone-cut -repeat 1 -keep -o '' -table ''"
soak-postgres: setup-test build ## the failover table: every fault of the database 20 times (80 min; root)
	go build -buildvcs=false -o bin/postgresdrill ./test/postgresdrill/cmd
	bin/postgresdrill -o bench/results/postgres-failover.json -table docs/postgres.md $(ARGS)

soak-redis-failover: setup-test ## 20 deaths of a Redis master, with confirmed writes and without (8 min)
	FOURNINES_REQUIRE_SERVERS=1 go test -count=1 -timeout 60m -tags soak -run SoakFailover -v ./test/redis

soak-celery: setup-test ## 20,000 Celery tasks while Redis masters die one after another (5 min)
	FOURNINES_REQUIRE_SERVERS=1 go test -count=1 -timeout 60m -tags soak -run SoakCelery -v ./test/redis

soak-redisproxy: setup-test build ## ten minutes of good and bad clients and dying masters: redisproxy must not grow (ARGS="-args -for=1m")
	FOURNINES_REQUIRE_SERVERS=1 go test -count=1 -timeout 60m -tags soak -run SoakGrowth -v ./test/redis $(ARGS)

soak-splitting: setup-test ## a million operations over two proxies with delayed replay: no read may miss what was acknowledged
	FOURNINES_REQUIRE_SERVERS=1 go test -count=1 -timeout 6h -tags soak -run Soak -v ./test/splitting

clean: ## remove what was built
	rm -rf bin .tools
