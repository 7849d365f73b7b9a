# Everything runs in .venv, which the first target to need it makes. PYTHON chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := memory sqlite etcd consul
PROJECTS := pyproject.toml core/pyproject.toml $(PLUGINS:%=plugins/%/pyproject.toml)
PYTEST := $(BIN)/python -m pytest -q
SERVERS := $(BIN)/python -m tests.servers
# With another worker in its place, the run would not end once one has died, as by a test's time-out.
CRASHED := --max-worker-restart 0
# A peer that pins what others need in newer releases.
ASIDE := $(BIN)/python -m pip install -q --disable-pip-version-check --upgrade --no-deps --target build/peers
CHARTS := $(BIN)/python -m pip install -q --disable-pip-version-check --group charts
# Tests start thousands of processes. Where an environment forbids bytecode, each would compile all.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check lint types docs capabilities conformance reports simulate soak bench growth bench-check proto fresh clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready ## three small programs on SQLite, and on real etcd and Consul servers
	@$(SERVERS) -- $(BIN)/python -m docs.examples.demo

# More workers than cores: many tests wait, for the end of a lease or for a server that is away.
test: lint types ## everything that must hold, on real etcd and Consul servers
	$(SERVERS) -- $(PYTEST) -n 8 --dist loadgroup $(CRASHED)

check: lint types ## the quick loop: lint, types, unit tests, memory and sqlite
	$(PYTEST) -n 2 --dist loadgroup $(CRASHED) -m "not etcd and not consul and not slow and not soak"

lint: .venv/ready ## style, and the layers: an import points down
	@mkdir -p build
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/lint-imports --no-cache >build/layers.txt 2>&1 || { cat build/layers.txt; exit 1; }

types: .venv/ready
	$(BIN)/mypy

docs: .venv/ready ## the documentation site, in build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

capabilities: .venv/ready ## the page of what the stores can do, from what they declare
	@$(BIN)/python -m docs.site.capabilities

conformance: .venv/ready ## check one store, and delete all in it: make conformance URI=etcd://127.0.0.1:2379
	@test -n "$(URI)" || { echo "which store? make conformance URI=…" >&2; exit 2; }
	@$(BIN)/python -m kvi.conformance $(URI)

reports: .venv/ready ## the suite's reports on all four stores, for the documentation
	$(SERVERS) -- $(BIN)/python -m tests.conformance.reports

SEED ?= 1
SCHEDULES ?= 1000
simulate: .venv/ready ## flows under a virtual clock: make simulate [SEED=1] [SCHEDULES=1000] [SCENARIO=lock]
	@$(BIN)/python -m tests.simulation --seed $(SEED) --schedules $(SCHEDULES) $(SCENARIO:%=--scenario %)

TIMES ?= 100
soak: .venv/ready ## long torture, and each fault a hundred times, for hours: make soak [TIMES=100]
	$(SERVERS) -- $(PYTEST) -m soak -s --timeout 7200
	$(SERVERS) -- $(PYTEST) -n 6 --dist loadgroup $(CRASHED) --count $(TIMES) tests/faults tests/conformance/faults

bench: .venv/ready ## kvi beside the least work that could do the job, and its peers
	@mkdir -p build
	@test ! -e build/bench.json || mv build/bench.json build/bench-before.json
	-$(ASIDE) etcetra
	PYTHONPATH=build/peers $(SERVERS) --fast -- $(BIN)/python -m benchmarks --json build/bench.json
	@$(CHARTS)
	$(BIN)/python -m benchmarks.page build/bench.json --beside build/bench-before.json

growth: .venv/ready ## how calls and memory grow with what there is: half an hour
	@mkdir -p build
	$(SERVERS) --fast -- $(BIN)/python -m benchmarks.growing --json build/growth.json
	@$(CHARTS)
	$(BIN)/python -m benchmarks.growing --page build/growth.json

bench-check: .venv/ready ## what of the last make bench falls short of its target
	@test -e build/bench.json || { echo "run make bench first" >&2; exit 2; }
	@$(BIN)/python -m benchmarks.page --check build/bench.json

# The oldest gRPC tools that run on the oldest Python, so that what they write suits every protobuf.
proto: ## make the messages of the etcd plugin and of an example anew from their .proto files
	$(PYTHON) -m venv build/proto && build/proto/bin/pip install -q "grpcio-tools==1.49.1" "setuptools<80"
	cd plugins/etcd/src && ../../../build/proto/bin/python -m grpc_tools.protoc -I. \
	  --python_out=. --pyi_out=. kvi_etcd/wire.proto
	build/proto/bin/python -m grpc_tools.protoc -I. \
	  --python_out=. --pyi_out=. docs/examples/device_agent/device.proto

# Needs root and debootstrap; ONLY=demo, or other targets, in place of both.
fresh: ## make demo and make test on a new Debian: make fresh DEBIAN=bookworm|trixie|sid [ONLY=demo]
	@tests/fresh.sh $(or $(DEBIAN),$(error which Debian? make fresh DEBIAN=trixie)) $(or $(ONLY),demo test)

clean: ## remove what the targets above have made here
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache

# Debian's Python has venv but not always the pip for it: then the system's own pip serves.
.venv/ready: $(PROJECTS)
	@echo "setting up .venv …" >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvi needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	@rm -rf .venv
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || { $(PYTHON) -m venv --clear --without-pip .venv \
	  && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install -q $(PLUGINS:%=-e plugins/%) -e "core[cli,conformance,cron]" -e ".[all]" --group dev
	@touch $@
