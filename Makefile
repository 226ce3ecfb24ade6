# Nothing but Python 3.11+, make and a package index is needed: every target builds its own .venv from the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check bench accuracy stack-test format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train, serve, stream, crash, recover, swap: the whole story (KEEP=1 leaves the servers up)
	$(BIN)/forecaster demo

test: $(INSTALLED) ## tests, doctests, import contracts
	$(BIN)/pytest

test-slow: $(INSTALLED) ## the tests that take minutes: real servers, crashes, schedules
	$(BIN)/pytest -m slow

check: $(INSTALLED) ## everything that must hold before a merge
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

bench: $(INSTALLED) ## throughput and latency as JSON lines, each beside its bare counterpart
	$(BIN)/forecaster bench

accuracy: $(INSTALLED) ## M4 hourly, ten minutes of training: make accuracy M4=FOLDER with M4-hourly-{train,test}.parquet
	@test -n "$(M4)" || { echo "make accuracy M4=FOLDER: the folder with M4-hourly-train.parquet and -test.parquet" >&2; exit 2; }
	mkdir -p build && cd build && ../$(BIN)/forecaster train "$(abspath $(M4))/M4-hourly-train.parquet" --freq 1 --horizon 48 --season 24 --season 168 --name m4-hourly --max-minutes 10 --out m4-hourly
	cd build && ../$(BIN)/forecaster predict "$(abspath $(M4))/M4-hourly-train.parquet" --model m4-hourly --horizon 48 --out m4-hourly.parquet
	cd build && ../$(BIN)/forecaster score m4-hourly.parquet "$(abspath $(M4))/M4-hourly-test.parquet" --history "$(abspath $(M4))/M4-hourly-train.parquet" --season 24

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

clean: ## remove the environment and every cache
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find forecaster service pipelines tests -name __pycache__ -type d -exec rm -rf {} +
