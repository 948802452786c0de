PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup test check coverage format docs bench build clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The stamp is newer than pyproject.toml unless what it asks for has changed since.
$(VENV)/test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

$(VENV)/bench: $(VENV)/test
	$(BIN)/pip install --quiet --editable '.[bench]'
	@touch $@

setup: $(VENV)/test  ## Make .venv with what the tests need

test: setup  ## Run the tests, but for kills, outages and browsers
	$(BIN)/pytest -m 'not slow'

check: setup  ## Format, lint, types, all tests: what must pass before a commit
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy --strict
	$(BIN)/pyright
	$(BIN)/pytest

coverage: setup  ## Run the tests and say which lines and branches of all processes they reach
	mkdir -p .cache/coverage
	$(BIN)/coverage run -m pytest --timeout 240
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

format: setup  ## Format the code and mend what lint can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup  ## Build the documentation into .cache/docs/html, with warnings as errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html -d .cache/docs/trees docs .cache/docs/html

bench: $(VENV)/bench  ## Run the benchmarks, and make the documentation's tables and plots of them
	mkdir -p .cache/bench
	$(BIN)/python -m benchmarks --json .cache/bench/figures.json
	$(BIN)/python -m benchmarks.pages .cache/bench/figures.json

build: setup  ## Build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m hatchling build -t sdist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist dist/flowrra-*.tar.gz
	$(BIN)/python -m twine check --strict dist/*

clean:  ## Remove what was made: .venv, caches, dist
	rm -rf $(VENV) .cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
