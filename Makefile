PYTHON ?= python3
BIN := .venv/bin

.PHONY: study test test-slow chaos check bench pocket clean

study: .venv/installed
	$(BIN)/remember run

test: .venv/installed-dev
	$(BIN)/pytest

test-slow: .venv/installed-dev
	$(BIN)/pytest -m slow

chaos: .venv/installed-dev
	$(BIN)/pytest -m chaos -s

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks

pocket: .venv/installed
	$(BIN)/remember pocket build --to runs/pocket

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv runs
