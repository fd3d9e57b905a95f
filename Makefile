# The two commands of the README are `make run` and `make test`; the others are named in CONTRIBUTING.md.
PYTHON ?= python3
FUZZ_S ?= 30
IMAGE_EXTRAS := encryption tiktoken tokenizers postgres recall kubernetes otel
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

# Tests that start no process of their own, or hardly any.
UNIT := $(addprefix tests/,app cli config core policies proxy replay runtime server sessions simulator tracing upstream wire) $(wildcard tests/test_*.py)
# Tests of the rooms without I/O, whose coverage is measured: there it costs a minute.
PURE := $(addprefix tests/,core policies sessions/context wire)
# Of tests of one name, as schemathesis makes them, workers beside each other would run one.
NAMESAKES = tests/server/test_openapi.py
LOWEST := .venv-lowest

.PHONY: run test servers check format lock test-lowest test-system test-vllm fuzz bench soak clean

# Installed from the lock file, hashes checked. The stamps are what tell make that it is done.
$(VENV)/run.stamp: requirements.lock deploy/image/build.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "warmroute needs Python 3.11 or newer; set PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock -r deploy/image/build.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/run.stamp
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

run: $(VENV)/run.stamp  ## serve on 127.0.0.1:8080 with four simulated workers
	WARMROUTE_SERVER__DECISION_HEADERS=true $(BIN)/warmroute serve --simulate 4 --insecure-no-auth

# As root on Debian the servers that tests start are installed; elsewhere tests whose server is missing say so, and in CI they
# fail.
servers:
	@{ command -v redis-server && command -v redis-sentinel && command -v prometheus && command -v promtool && command -v chromium; } > /dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends redis-server redis-sentinel prometheus chromium > /dev/null; fi

test: check servers  ## every check and every test
	$(BIN)/pytest -q --cov --cov-report=term:skip-covered $(PURE)
	$(BIN)/pytest -q -n 2 --dist loadfile $(PURE:%=--ignore=%) --ignore=$(NAMESAKES) tests
	$(BIN)/pytest -q $(NAMESAKES)

test-system: $(VENV)/dev.stamp servers  ## faults that need many processes, or their time
	$(BIN)/pytest -q -m system tests

test-lowest: $(LOWEST)/stamp  ## unit tests with the lowest releases that pyproject.toml declares
	$(LOWEST)/bin/pytest -q --deselect tests/test_docs.py $(UNIT)

$(LOWEST)/stamp: pyproject.toml $(VENV)/dev.stamp
	$(PYTHON) -m venv $(LOWEST)
	$(BIN)/uv pip compile -q --resolution lowest-direct --generate-hashes --python $(LOWEST)/bin/python --extra dev pyproject.toml -o $(LOWEST)/requirements.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r deploy/image/build.lock
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps -e .
	@touch $@

check: $(VENV)/dev.stamp  ## formatting, lint, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/dev.stamp  ## renew the lock files
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	printf 'hatchling>=1.27\neditables>=0.5\n' | $(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' -c requirements-dev.lock - -o deploy/image/build.lock
	$(BIN)/uv pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes $(IMAGE_EXTRAS:%=--extra %) -c requirements-dev.lock pyproject.toml -o deploy/image/requirements.lock

test-vllm: $(VENV)/dev.stamp  ## two real vLLM workers on this machine's CPU (2.5 GB, minutes)
	$(BIN)/python -m tests.vllm.setup
	$(BIN)/pytest -q -m vllm tests/vllm

fuzz: $(VENV)/dev.stamp  ## the parsers under atheris, half a minute each
	$(BIN)/pip install --quiet 'atheris>=3'
	for target in json request client_head reply_head framing sse responses answers; do $(BIN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_S); done

bench: $(VENV)/dev.stamp  ## every measurement of bench/README.md that needs no peer and no real worker (half an hour)
	$(BIN)/python -m bench.decision_cost
	$(BIN)/python -m bench.loop_stall
	$(BIN)/python -m bench.kills
	$(BIN)/python -m bench.stream_kills
	$(BIN)/python -m bench.stream_kills --streams 3000 --answers bytes
	$(BIN)/python -m bench.rolling
	$(BIN)/python -m bench.failovers
	$(BIN)/python -m bench.outage
	$(BIN)/python -m bench.cancellations
	$(BIN)/python -m bench.disconnects
	$(BIN)/python -m bench.stalls
	$(BIN)/python -m bench.stalls --text
	$(BIN)/python -m bench.slowloris
	$(BIN)/python -m bench.idle
	$(BIN)/python -m bench.fairness
	$(BIN)/python -m bench.cpu.compare --routers warmroute nginx
	$(BIN)/python bench/routing.py

soak: $(VENV)/dev.stamp  ## half an hour of mixed traffic with faults at random; MINUTES=N for another time
	$(BIN)/python -m bench.soak $(or $(MINUTES),30)

clean:
	rm -rf $(VENV) $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
