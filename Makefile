# Every task of the project. CI calls the same targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
TEST_THREADS ?= 2
# End-to-end tests wait more than they compute.
E2E_THREADS ?= 3
# The cargo profile of `make run`: quick (least time to build), release or dev.
BERTH_PROFILE ?= quick
BERTH_DEV = $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(1)),debug,$(1))/berth-dev

.PHONY: help run test test-chart unit e2e churn simulate fuzz build fmt fmt-check lint deny proto-lint load bench-latency bench-lifecycle bench-tokens setup clean

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Install, build, start everything, run a PySpark query, serve until Ctrl-C (EXIT=1: stop after it)
	@deploy/local/setup.sh run console
	@deploy/local/console_web.sh
	@echo "berth: building ($(BERTH_PROFILE)); the first time takes some minutes"
	@cargo build --locked --profile $(BERTH_PROFILE) -p session-manager -p token-issuer -p spark-proxy -p console -p compute -p cli -p local-stack
	@$(call BERTH_DEV,$(BERTH_PROFILE)) run $(if $(EXIT),--exit)

setup: ## Install what the tests need, and build the console's pages
	@deploy/local/setup.sh run console test browser
	@deploy/local/console_web.sh

.PHONY: console-web
console-web: ## Build the console's pages (crates/console/web/dist); programs built after it have them
	@deploy/local/setup.sh console
	@deploy/local/console_web.sh

test: setup fmt-check deny lint proto-lint mutations-apply unit test-chart fuzz-briefly e2e test-browser ## Everything but a real cluster: formatting, licences, lints, unit, contract, chart, fuzz (10 s), end-to-end, browser tests
	@echo "all tests passed"

build: ## Build every program
	cargo build --locked --workspace --all-targets

unit: build ## Unit, property, contract and provider tests
	cargo test --locked --workspace --exclude e2e --no-fail-fast -- --test-threads=$(TEST_THREADS)

e2e: build ## The whole of Berth on real Redis, Sail, Apache Spark and PySpark
	cargo test --locked --workspace --test e2e -- --test-threads=$(E2E_THREADS)

.PHONY: wheel test-python
wheel: ## Build the wheel of the Python package `berth` into target/wheel
	@deploy/local/setup.sh wheel
	@$${BERTH_HOME:-$(CURDIR)/.berth}/venv-wheel/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps \
		--no-build-isolation --wheel-dir $(or $(CARGO_TARGET_DIR),target)/wheel crates/cli/python
	@ls $(or $(CARGO_TARGET_DIR),target)/wheel/berth-*.whl

test-python: build ## The Python package on PySpark 3.5 to 4.3, Sail and Spark, TLS and plaintext (CLIENTS="Py35 Py43" ENGINES=sail)
	@deploy/local/setup.sh test
	cargo test --locked --workspace --test e2e python_package:: -- --include-ignored --nocapture --test-threads=1

.PHONY: test-clients
test-clients: build ## The client matrix: PySpark, Scala, JDBC, ADBC, Go, Rust on Sail and Spark; writes docs/clients.md (CLIENTS="pyspark-4 go" ENGINES=sail)
	@deploy/local/setup.sh clients
	cargo test --locked --workspace --test e2e clients::matrix -- --include-ignored --nocapture

.PHONY: test-recipes
test-recipes: build ## Every program of docs/recipes.md on Sail, that of Airflow too
	@deploy/local/setup.sh recipes
	cargo test --locked --workspace --test e2e recipes:: -- --include-ignored --nocapture --test-threads=1

.PHONY: conformance
conformance: build ## Test suites of other projects, direct and through Berth, compared by test; writes docs/clients.md (SELECT="go" ENGINES=sail)
	@deploy/local/setup.sh conformance
	cargo test --locked --workspace --test e2e conformance:: -- --include-ignored --nocapture --test-threads=1

churn: build ## Managers, Redis, primaries and masters die under load, SECONDS_EACH=600 each (ONLY=managers)
	CHURN_SECONDS=$(or $(SECONDS_EACH),600) cargo test --locked --workspace --test e2e churn::$(ONLY) -- --test-threads=1 --nocapture

.PHONY: redis-faults
redis-faults: build ## TLS, rights, moving slots, a full disk and no memory of a real Redis under load, SECONDS_EACH=30 a phase (ONLY=slots)
	REDIS_SECONDS=$(or $(SECONDS_EACH),30) cargo test --locked --workspace --test e2e redis_for_real::$(ONLY) -- --test-threads=1 --nocapture

.PHONY: linearizable check-history soak
linearizable: build ## Histories of concurrent clients under faults, each judged; ROUNDS=10 of SECONDS_EACH=300 (SEED=n is the first)
	ROUNDS=$(or $(ROUNDS),10) SECONDS_EACH=$(or $(SECONDS_EACH),300) SEED=$(or $(SEED),1) cargo test --locked --workspace --test e2e linearizable::rounds -- --include-ignored --nocapture

check-history: ## Judge a kept history again (HISTORY=target/linearizable/seed-1/history.jsonl)
	HISTORY=$(abspath $(HISTORY)) cargo test --locked --workspace --test e2e linearizable::a_kept_history -- --include-ignored --nocapture

soak: ## All kinds of clients for HOURS=0.5 beside RESTARTS=20 of every service and as many new keys (HOURS=4: 10 million calls)
	@deploy/local/setup.sh run console test
	@deploy/local/console_web.sh
	cargo build --locked --profile $(or $(PROFILE),release) --workspace --bins
	HOURS=$(or $(HOURS),0.5) RESTARTS=$(or $(RESTARTS),20) RATE=$(or $(RATE),700) cargo test --locked --profile $(or $(PROFILE),release) --workspace --test e2e soak::hours -- --include-ignored --nocapture

.PHONY: revocation cancels
revocation: build ## How soon nine removals are effective, in four states; writes docs/security.md (ROUNDS=50 CUT_ROUNDS=10)
	ROUNDS=$(or $(ROUNDS),50) CUT_ROUNDS=$(or $(CUT_ROUNDS),10) cargo test --locked --workspace --test e2e revocation::matrix -- --include-ignored --nocapture

cancels: build ## Calls cancelled early, 2000 a second, beside 20 long streams (CANCELS=50000)
	CANCELS=$(or $(CANCELS),50000) cargo test --locked --workspace --test alone cancels -- --test-threads=1 --nocapture

.PHONY: cuts long-queries
cuts: build ## Connections cut at random moments of results on Sail, CUTS=500 (SEED=n)
	CUTS=$(or $(CUTS),500) cargo test --locked --workspace --test e2e reattach::random_cuts -- --nocapture

long-queries: build ## Two queries of 12 minutes on Sail with PySpark 4.3, which ends each stream after 10
	cargo test --locked --workspace --test e2e reattach::queries_of_twelve -- --include-ignored --nocapture

simulate: ## Lives of sessions under faults, from seeds 1 to SEEDS=20000 (SEED=n tells one in full)
	SEEDS=$(or $(SEEDS),20000) SEED=$(SEED) FIRST=$(FIRST) THREADS=$(THREADS) cargo test --locked -p session-manager --lib simulation::lives -- --nocapture

.PHONY: mutants mutations-apply
mutants: build ## Introduce one fault at a time; the simulation must detect it (SEEDS=1000, ONLY="name ...")
	SEEDS=$(or $(SEEDS),1000) $(call BERTH_DEV,dev) mutants $(ONLY)

mutations-apply: build ## Verify that the mutations apply to the present code
	@$(call BERTH_DEV,dev) mutants --apply

.PHONY: test-browser browser-pages
test-browser: browser-pages build ## The console in Chromium on the whole of Berth (ONLY="words of a test", SCREENSHOTS=1 writes docs/images)
	@node --test --test-reporter=spec --test-timeout=900000 tests/browser/main.mjs

# The pages are embedded in the program, so they are built before it.
browser-pages:
	@deploy/local/setup.sh browser
	@deploy/local/console_web.sh

test-chart: build ## The Helm chart: values, schemas, configuration, alerts, dashboard (ONLY="words of a check")
	@deploy/local/setup.sh run chart
	@$${BERTH_HOME:-$(CURDIR)/.berth}/venv-chart/bin/python helm/tests/run.py $(ONLY)

fuzz: ## Fuzz what reads hostile bytes (SECONDS_EACH=60)
	@crates/spark-proxy/fuzz/run.sh

.PHONY: fuzz-briefly
fuzz-briefly:
	@SECONDS_EACH=10 crates/spark-proxy/fuzz/run.sh

.PHONY: image test-k8s bench-k8s bench-k8s-claims
image: ## Build the container images of the services and the command, as archives (BERTH_PROFILE=dist)
	@deploy/images/build.sh

test-k8s: ## Berth on a real one-node Kubernetes cluster; needs root and Go (ARGS="-k chart")
	@tests/k8s/run.sh

bench-k8s: ## Times of sessions on that cluster, with and without warm pods
	@BENCH=sessions tests/k8s/run.sh

bench-k8s-claims: ## Hundreds of sessions at once on a warm pool of that cluster, with an engine that answers at once
	@BENCH=claims tests/k8s/run.sh

fmt: ## Format the code
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: ## Clippy, with warnings as errors
	cargo clippy --locked --workspace --all-targets -- -D warnings

proto-lint: ## Lint the protos with buf
	@deploy/local/setup.sh lint
	cd proto && $${BERTH_HOME:-$(CURDIR)/.berth}/venv-lint/bin/buf lint

deny: ## Licences, sources, banned and duplicate crates; without advisories, whose database is not in a registry
	@deploy/local/setup.sh deny
	@PATH=$${BERTH_HOME:-$(CURDIR)/.berth}/venv-deny/bin:$$PATH cargo deny --locked check -D warnings bans licenses sources

load: ## The data path beside Envoy, nginx and haproxy, interleaved, under 5 minutes (ARGS="--only latency --rounds 5")
	@deploy/local/setup.sh load
	cargo build --locked --profile dist -p spark-proxy -p load
	$${CARGO_TARGET_DIR:-target}/dist/load $(ARGS)

.PHONY: bench-tracing
bench-tracing: ## What tracing at the default ratio costs a call, in instructions, counted by valgrind (ARGS="--rounds 5")
	@deploy/local/setup.sh instructions
	cargo build --locked --profile dist -p spark-proxy -p load
	$${CARGO_TARGET_DIR:-target}/dist/load --only instructions --out target/bench/tracing.json $(ARGS)

.PHONY: bench-floods
bench-floods: ## Calls beside floods of HTTP/2 frames, in a release build: p99 at most twice that of a direct call
	cargo test --locked --profile dist -p spark-proxy --test alone floods -- --test-threads=1 --nocapture

bench-latency: ## Latency that the proxy adds to a direct call, and berth connect to the proxy, interleaved
	@deploy/local/setup.sh run
	cargo build --locked --release --workspace --bins
	$(or $(CARGO_TARGET_DIR),target)/release/latency

bench-tokens: ## What tokens cost: checked, found again, issued end to end
	@deploy/local/setup.sh run
	cargo build --locked --release --workspace --bins
	cargo run --locked --release -p e2e --bin tokens

bench-lifecycle: ## The life of sessions: clocks, creates, routes, memory, wake-ups (ARGS="--only creates --rounds 5")
	@deploy/local/setup.sh run
	cargo build --locked --release --workspace --bins
	target/release/lifecycle $(ARGS)

.PHONY: capacity
capacity: ## What 1000 sessions cost each service: memory, CPU, Redis; under three minutes after the build (ARGS="--sessions 8000")
	@deploy/local/setup.sh run
	cargo build --locked --profile dist -p session-manager -p token-issuer -p spark-proxy -p cli
	PROGRAMS=$${CARGO_TARGET_DIR:-target}/dist $${BERTH_HOME:-$(CURDIR)/.berth}/venv-sail/bin/python tests/capacity/measure.py $(ARGS)

clean: ## Remove what was built, not what was installed
	cargo clean
