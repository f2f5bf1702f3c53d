# Everything in one place: a virtual environment in .venv, the demo, the tests. Needs Python 3.11+, pip, make.
#   make demo        what the library is for, on three pictures
#   make test        the whole suite, style and types
#   make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
JOBS ?= 2
# The oldest supported releases, beside .venv's newest ones: see docs/versions.md.
OLDEST := $(VENV)/oldest
OLDEST_RELEASES := transformers==5.18.0 peft==0.19.0 accelerate==1.12.0 trl==1.16.0
# Decoding, models, training and merging: what depends on these releases, each kind of dependence once.
OLDEST_TESTS := tests/decoding/test_compatibility.py tests/decoding/test_bundled.py tests/decoding/test_backend.py \
	tests/decoding/test_hf_backend.py tests/decoding/test_hf_compat.py tests/decoding/test_cuda_graph_answers.py \
	tests/decoding/test_stopping.py tests/modes/test_nodes.py tests/test_generate.py tests/experiments/test_baselines.py \
	tests/models/test_adding.py tests/models/test_inputs.py tests/models/test_loading.py tests/models/test_tiny.py \
	tests/models/test_merging.py tests/training/test_adapters.py tests/training/test_assumptions.py \
	tests/training/test_loss.py tests/training/test_sft.py tests/training/rl/test_rl_runs.py tests/test_cli.py::test_demo_errs_and_mends
NEWEST := .venv-newest
CASES ?= 100000
SEED ?= 0
STATE ?= $(VENV)/fuzz-$(SEED).jsonl

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-oldest test-newest fuzz lint clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */make \1	/'

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

test: test-all test-oldest  ## style, types, all tests, and some on the oldest supported releases

test-all: lint
	@$(BIN)/reverse data language
	@$(BIN)/python -m compileall -q reverse  # once, not in each of the many processes that tests start
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=15

# Only these packages differ, so they go before the rest on the path.
test-oldest: $(OLDEST)/installed  ## decoding, models, training and merging on the oldest supported releases
	PYTHONPATH=$(CURDIR)/$(OLDEST) REVERSE_TEST_RELEASES="$(OLDEST_RELEASES)" OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n $(JOBS) --durations=15 $(OLDEST_TESTS)

$(OLDEST)/installed: $(STAMP) Makefile
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLDEST) $(OLDEST_RELEASES)
	@touch $@

# torch and torchvision stay as they are in constraints.txt: newer ones may come as builds for CUDA of several GB.
test-newest: lint  ## all tests on the newest release of every dependency within its range, in .venv-newest
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	grep -E '^torch(vision)?==' constraints.txt > $(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install --quiet -r $(NEWEST)/torch.txt
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -c $(NEWEST)/torch.txt \
		-e ".[train,dev]"
	$(NEWEST)/bin/python tests/install_shim.py
	@echo "Releases that differ from constraints.txt:"
	@$(NEWEST)/bin/python -m pip freeze --exclude-editable | grep -ivxFf constraints.txt || true
	@$(NEWEST)/bin/reverse data language
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n $(JOBS) --durations=15

fuzz: $(STAMP)  ## the fuzzers for longer: make fuzz CASES=1000000 SEED=1; stopped, it goes on
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --cases $(CASES) --seed $(SEED) --workers $(JOBS) --state $(STATE)

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove .venv, caches and built files
	rm -rf $(VENV) $(NEWEST) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
