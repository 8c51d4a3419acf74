# install  mtrec into .venv, without the tools of its tests
# demo   run the main job on MovieLens-100K and leave the endpoint up (ARGS=--no-serve ends instead)
# test   linters and every test; check: the fast part; lint: linters and an audit of the dependencies
# bench  speed and memory, for example: make bench ARGS="--stage serve --scale full"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Test files run two at a time: Ray's starts leave half of two cores idle.
TESTERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

.PHONY: install demo test check lint bench

install: $(VENV)/run.stamp

demo: $(VENV)/run.stamp
	$(BIN)/mtrec demo $(ARGS)

test: lint
	$(PYTEST)

check: lint
	$(PYTEST) -m "not slow and not ray"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check . .ci/audit
	$(BIN)/ruff format --check . .ci/audit
	$(BIN)/mypy
	$(BIN)/mypy --strict jobs/*.py cluster/*.py .ci/audit
	$(BIN)/python .ci/audit

bench: $(VENV)/bench.stamp
	$(BIN)/python jobs/benchmark.py --out runs/bench $(ARGS)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mtrec needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of dependencies: editing pyproject.toml installs anew, nothing else does.
$(VENV)/run.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev,bench]'
	@touch $@ $(VENV)/dev.stamp $(VENV)/run.stamp
