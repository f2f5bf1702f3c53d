# Everything in one place: a virtual environment in .venv, the demo, the tests. Needs Python 3.11+, pip, make.
#   make demo        what the library is for, on three pictures
#   make test        the whole suite, style and types
#   make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
JOBS ?= 2
CASES ?= 100000
SEED ?= 0
STATE ?= $(VENV)/fuzz-$(SEED).jsonl

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test fuzz lint clean

help:  ## say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1	/'

install: $(STAMP)  ## make .venv and install the package with all it takes to test it

# One environment for the demo and the tests, so that either may come first. The stamp is written last.
$(STAMP): pyproject.toml constraints.txt tests/install_shim.py tests/torchvision_cpu_shim.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[train,dev]"
	$(BIN)/python tests/install_shim.py
	@touch $@

demo: $(STAMP)  ## what the library is for, on three pictures
	@$(BIN)/reverse demo

test: lint  ## the whole suite, after style and types
	@$(BIN)/reverse data language
	@$(BIN)/python -m compileall -q reverse  # once, not in each of the many processes that tests start
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=15

fuzz: $(STAMP)  ## the fuzzers for longer: make fuzz CASES=1000000 SEED=1; stopped, it goes on
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED) --workers $(JOBS) --state $(STATE)

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv, caches and built files
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
