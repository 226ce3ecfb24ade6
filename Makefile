# Nothing but Python 3.11+, make and a package index is needed: every target builds its own .venv from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS_INSTALLED := .venv-peers/.installed

.DEFAULT_GOAL := help
DATA ?= $(FORECASTER_DATA)

.PHONY: data help install demo test test-slow soak check bench accuracy ablation bench-peers stack-test format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train, serve, stream, crash, recover, swap: the whole story (KEEP=1 leaves the servers up)
	$(BIN)/forecaster demo

test: $(INSTALLED) ## tests, doctests, import contracts
	$(BIN)/pytest

test-slow: $(INSTALLED) ## the tests that take minutes: real servers, crashes, schedules
	$(BIN)/pytest -m slow --numprocesses=0

soak: $(INSTALLED) ## the reliability tests at full length: hundreds of kills, faults, minutes of overload
	$(BIN)/pytest -m soak -rA tests/reliability

check: $(INSTALLED) ## everything that must hold before a merge
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

bench: $(INSTALLED) ## throughput and latency as JSON lines, each beside its bare counterpart
	$(BIN)/forecaster bench

data: # asked for before anything is installed
	@test -n "$(DATA)" || { echo "make TARGET DATA=FOLDER: the folder with the data sets' parquet files" >&2; exit 2; }

accuracy: data $(INSTALLED) ## ten minutes of training on each public data set: make accuracy DATA=FOLDER [SETS=m4-hourly,...]
	mkdir -p build
	$(BIN)/forecaster bench accuracy --data "$(DATA)" --sets "$(SETS)" --tracking-uri sqlite:///build/mlflow.db --out build/accuracy.md

ablation: data $(INSTALLED) ## variants of the method, three minutes each: make ablation DATA=FOLDER SETS=m4-hourly,... [VARIANTS=...]
	mkdir -p build
	$(BIN)/forecaster bench ablation --data "$(DATA)" --sets "$(SETS)" --variants "$(VARIANTS)" --tracking-uri sqlite:///build/mlflow.db --out build/ablation.md

bench-peers: data $(INSTALLED) $(PEERS_INSTALLED) ## other libraries on the same data: make bench-peers DATA=FOLDER [SETS=...] [PEERS=...]
	mkdir -p build
	$(BIN)/forecaster bench peers --data "$(DATA)" --sets "$(SETS)" --peers "$(PEERS)" --lines build/peers.jsonl --out build/peers.md

stack-test: $(INSTALLED) ## the whole stack in containers: train, promote, stream, restart (needs docker compose)
	$(BIN)/python -m tests.stack.run

format: $(INSTALLED) ## put the code in the house's form
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

install: $(INSTALLED) ## only build .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(PEERS_INSTALLED): requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-peers.txt
	@touch $@

clean: ## remove the environment and every cache
	rm -rf .venv .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find forecaster service pipelines tests -name __pycache__ -type d -exec rm -rf {} +
