# `make demo` and `make test` install what constraints.txt names into .venv: the versions that were tested.
PYTHON ?= python3
BIN := .venv/bin
LOCK := uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate \
	--custom-compile-command "make lock"

.PHONY: demo test quick lint docs lock test-newest test-oldest clean

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

.venv/%.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[$*]"
	touch $@

docs: .venv/dev.stamp
	$(BIN)/python docs/make_cli.py

# Renews constraints.txt with the newest versions that fit together.
lock: .venv/uv
	$(BIN)/$(LOCK) --upgrade -q -o constraints.txt

.venv/uv:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q uv
	touch $@

# The suite with the newest versions there are, and with the least that pyproject.toml allows.
test-newest test-oldest: test-%: .venv/uv
	$(BIN)/uv venv -q --clear --seed --python $(PYTHON) .venv-$*
	$(BIN)/uv pip install -q --python .venv-$*/bin/python $(if $(filter oldest,$*),--resolution lowest-direct) -e ".[dev]"
	.venv-$*/bin/python -m pytest

clean:
	rm -rf .venv .venv-newest .venv-oldest demo-output
