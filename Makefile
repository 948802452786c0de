PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Versions for CI; elsewhere, and with `CONSTRAINTS=`, the newest ones that pyproject.toml allows.
CONSTRAINTS ?= $(if $(CI),$(wildcard .ci/constraints.txt))
INSTALL = $(BIN)/pip install --quiet $(addprefix --constraint ,$(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help setup test check mypy pyright coverage format docs bench build pins clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is newer than pyproject.toml, unless the requirements have changed.
$(VENV)/test: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/bench: $(VENV)/test
	$(INSTALL) --editable '.[bench]'
	@touch $@

setup: $(VENV)/test  ## Make .venv with the packages for the tests

test: setup  ## Run the tests, without kills, outages and browsers
	$(BIN)/pytest -m 'not slow'

check: setup  ## Check spelling, format, lint and types, and run all tests: before a commit
	$(BIN)/codespell
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(MAKE) --no-print-directory --jobs 2 --output-sync mypy pyright
	$(BIN)/pytest

mypy: setup
	$(BIN)/mypy --strict

pyright: setup
	$(BIN)/pyright

coverage: setup  ## Run the tests and report which lines and branches they reach, in all processes
	mkdir -p .cache/coverage
	$(BIN)/coverage run -m pytest --timeout 240
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

format: setup  ## Format the code, and fix what lint can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup  ## Build the documentation into .cache/docs/html, with warnings as errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d .cache/docs/trees docs .cache/docs/html

bench: $(VENV)/bench  ## Run the benchmarks, and write the tables and plots of the documentation
	mkdir -p .cache/bench
	$(BIN)/python -m benchmarks --json .cache/bench/figures.json
	$(BIN)/python -m benchmarks.pages .cache/bench/figures.json

build: setup  ## Build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist dist/flowrra-*.tar.gz
	$(BIN)/python -m twine check --strict dist/*

pins: setup  ## Pin the versions in .venv for CI: run it after `make clean test`
	sed -i '/^#/!d' .ci/constraints.txt
	$(BIN)/pip freeze --exclude-editable >> .ci/constraints.txt

clean:  ## Remove .venv, caches and dist
	rm -rf $(VENV) .cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
