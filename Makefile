# The two commands of the README, and those of a contributor. Each sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint format bench bench-quick clean

demo: $(VENV)/demo.stamp
	$(BIN)/weft demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/lint.stamp
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks $(ARGS)
	$(BIN)/python -m benchmarks.report

bench-quick: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks quick $(ARGS)

clean:
	rm -rf $(VENV) weft-demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/pyvenv.cfg:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"weft needs Python 3.11 or newer, found {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

$(VENV)/demo.stamp: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable '.[all]'
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(PIP) install --constraint constraints.txt --editable '.[all,test]'
	touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(PIP) install --constraint constraints.txt --editable '.[all,test,lint]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(PIP) install --constraint constraints.txt --editable '.[all,test,bench]'
	touch $@
