# Everything a developer runs. Each target sets up what it needs, on a bare Debian 12 with Python 3.11 too.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEEDS  ?= 200
INPUTS ?= 1000000
KILLS  ?= 100
EXAMPLES ?= 100
OLD    ?= main
NEW    ?= HEAD
PYTEST := $(BIN)/python -m pytest

# $(call debian,COMMAND OR TEST,PACKAGES): install Debian packages when the test fails, if we may.
define debian
	@if ! { $(1); } >/dev/null 2>&1; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    export DEBIAN_FRONTEND=noninteractive; \
	    apt-get update -qq && apt-get install -y -qq --no-install-recommends $(2); \
	  else echo "missing: $(2). Run as root: apt-get install $(2)" >&2; exit 1; fi; \
	fi
endef

.DEFAULT_GOAL := help
.PHONY: help setup test test-large engines lint format demo demo-relay bench bench-quick bench-compare bench-relay sim crash mutants fuzz oracle torture schema lock docs clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## make .venv with everything locked

$(VENV)/bin/pip:
	$(call debian,$(PYTHON) -c "import ensurepip; import venv",python3 python3-venv)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install -q --disable-pip-version-check --only-binary :all: --require-hashes -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/pip install -q --disable-pip-version-check --only-binary :all: --require-hashes -r requirements-dev.lock
	@touch $@

# Files in parallel; the simulation after them, as it takes all cores itself.
test: $(VENV)/.dev ## unit, property, simulation and end-to-end tests
	$(PYTEST) -m "not large" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --ignore tests/simulation
	$(PYTEST) -m "not large" tests/simulation

test-large: $(VENV)/.dev ## what takes minutes
	$(PYTEST) -m large --timeout 3600

# apt-get would start a server of its own beside those of the tests: only its programs are wanted.
engines: $(VENV)/.dev ## the relay's tests against a real PostgreSQL and a real S3 store
	$(call debian,ls /usr/lib/postgresql/*/bin/initdb,postgresql)
	$(PYTEST) -m "not large" --engines tests/relay

lint: $(VENV)/.dev ## style, types, and which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## repair the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(VENV)/.runtime ## two nodes on this machine, paired by code, synchronising
	$(BIN)/p2psync demo

# Network namespaces stand for two homes; where they are not to be had the demo does without.
demo-relay: $(VENV)/.dev ## a relay, an account, and devices that are never online together
	-$(call debian,command -v ip,iproute2)
	$(BIN)/python -m tools.demo_relay

# A peer that cannot be installed is a row that says so, hence the leading "-".
bench: $(VENV)/.dev ## measure beside Syncthing, Unison, rsync and the floor
	-$(call debian,command -v rsync && command -v syncthing && command -v unison && command -v ip,rsync syncthing unison iproute2)
	$(BIN)/python -m benchmarks --chart docs/performance.svg

bench-quick: $(VENV)/.dev ## one large file and small ones, less of both: under two minutes
	-$(call debian,command -v rsync && command -v syncthing && command -v unison && command -v ip,rsync syncthing unison iproute2)
	$(BIN)/python -m benchmarks --quick

bench-compare: $(VENV)/.dev ## OLD=main NEW=HEAD by turns: does NEW make something slower?
	$(BIN)/python -m benchmarks.compare $(OLD) $(NEW)

bench-relay: $(VENV)/.dev ## measure a relay beside the same stack serving a bare handler
	$(BIN)/python -m benchmarks.relay

sim: $(VENV)/.dev ## simulate SEEDS=200 histories of nodes, crashes and lost links
	$(BIN)/python -m tests.simulation --seeds $(SEEDS)

crash: $(VENV)/.dev ## cut the power at every file-system operation of short workloads
	$(BIN)/python -m tests.crash

mutants: $(VENV)/.dev ## plant known bugs, one after the other: the tests must notice each
	$(BIN)/python -m tests.mutants

fuzz: $(VENV)/.dev ## INPUTS=1000000 hostile inputs for every decoder, guided by coverage
	$(BIN)/python -m tests.fuzz --inputs $(INPUTS) --state build/fuzz/$(INPUTS)

oracle: $(VENV)/.dev ## KILLS=100 kill -9 of real nodes at work, cut links, failing system calls
	$(call debian,command -v strace,strace)
	$(BIN)/python -m tests.oracle --kills $(KILLS)

torture: $(VENV)/.dev ## KILLS=100 kill -9 of a real relay under load
	$(BIN)/python -m tests.relay.torture --kills $(KILLS)

schema: $(VENV)/.dev ## EXAMPLES=100 generated requests for each operation of the relay and phase
	$(BIN)/python -m tests.relay.schema --examples $(EXAMPLES)

lock: $(VENV)/.dev ## resolve the dependencies anew
	$(BIN)/uv pip compile $(LOCK) pyproject.toml tools/build.in -o requirements.lock
	$(BIN)/uv pip compile $(LOCK) --all-extras -c requirements.lock pyproject.toml tools/build.in -o requirements-dev.lock

LOCK := -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

docs: $(VENV)/.runtime ## make the pages that derive from the code
	$(BIN)/python -m p2psync.node.config > docs/configuration.md

clean: ## remove what the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
