# `make demo` and `make test` set up what they need in .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test quick lint clean

demo: .venv/demo.stamp
	$(BIN)/glia-rt demo --out demo-output --overwrite

# A process for each package: training forks its workers, which processes full of other libraries' threads should not.
SUITES := glia_rt glia_train glia_export end_to_end

test: .venv/dev.stamp
	set -e; for suite in $(SUITES); do $(BIN)/python -m pytest tests/$$suite; done

quick: .venv/dev.stamp
	set -e; for suite in $(SUITES); do $(BIN)/python -m pytest -m "not slow" tests/$$suite; done

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
