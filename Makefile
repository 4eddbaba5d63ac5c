PYTHON ?= python3
BIN := .venv/bin

.PHONY: study test test-slow test-extras chaos check bench parity-auto-gptq pocket clean

study: .venv/installed
	$(BIN)/remember run

test: .venv/installed-dev
	$(BIN)/pytest

test-slow: .venv/installed-dev
	$(BIN)/pytest -m slow

# What needs an optional package, in an environment that has them all.
test-extras: .venv-extras/installed
	.venv-extras/bin/python -m pytest -m "extras and not chaos"

chaos: .venv/installed-dev
	$(BIN)/pytest -m chaos -s

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks

# Our GPTQ reader beside auto-gptq, which cannot be imported beside transformers 5.
parity-auto-gptq: .venv/installed .venv-auto-gptq/installed
	$(BIN)/python -m benchmarks.auto_gptq --python .venv-auto-gptq/bin/python

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

.venv-extras/installed: pyproject.toml
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,gguf,gptq]"
	touch $@

# The newest releases that auto-gptq, which is archived, works with.
.venv-auto-gptq/installed:
	$(PYTHON) -m venv .venv-auto-gptq
	.venv-auto-gptq/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.13.0 transformers==4.57.6 peft==0.17.1 auto-gptq==0.7.1 optimum==2.3.0
	touch $@

clean:
	rm -rf .venv .venv-extras .venv-auto-gptq runs
