# `make demo` and `make test` set up what they need in .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick lint clean

demo: .venv/demo.stamp
	$(BIN)/glia-rt demo --out demo-output --overwrite

test: .venv/dev.stamp
	$(BIN)/python -m pytest

quick: .venv/dev.stamp
	$(BIN)/python -m pytest -m "not slow"

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/%.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e ".[$*]"
	touch $@

clean:
	rm -rf .venv demo-output
