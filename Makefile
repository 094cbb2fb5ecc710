# `make run` and `make test` do everything a fresh machine needs: a virtual environment, the pinned packages, then the job.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: run test suite test-long check lint tables peers bench gpu mutation kills clean

run: $(VENV)/.installed
	$(BIN)/python run.py model=ltc solver=rk4

# Types take a minute of one processor, which the tests' two workers do not need all of.
test: $(VENV)/.installed-test
	$(MAKE) --jobs=2 lint suite

suite: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest

# With the tests of many runs, of killed and of stopped sweeps, of every sweep's cost, and with more mutants and drawings.
test-long: $(VENV)/.installed-test
	LIQUIDBENCH_LONG=1 LIQUIDBENCH_SEEDS=3 LIQUIDBENCH_RUNS=1000 LIQUIDBENCH_MUTANTS=6 LIQUIDBENCH_FUZZ=1000 \
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest

# A minute's worth of tests for the one who is writing code: all but those marked slow.
check: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All tables and figures of results/ and runs/, into reports/; then the published ones, and the pages that show them.
tables: $(VENV)/.installed
	$(BIN)/python -m analysis
	$(BIN)/python -m analysis --pages

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "LiquidBench needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# mamba-ssm is built without its CUDA kernels where there is no CUDA: its reference code is an oracle of the tests. xlstm
# asks for mlstm_kernels, which its layers in torch do not need.
$(VENV)/.installed-test: $(VENV)/.installed-peers
	$(PIP) --editable .[test]
	MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(PIP) --no-build-isolation --no-deps mamba-ssm
	$(PIP) --no-deps xlstm
	touch $@

peers: $(VENV)/.installed-peers

# pararnn-torch asks for another Triton than torch's CUDA build does; on a CPU it needs none.
$(VENV)/.installed-peers: $(VENV)/.installed
	$(PIP) --editable .[edge,peers,reference]
	$(PIP) --no-deps pararnn-torch
	touch $@

bench: peers
	$(BIN)/python -m bench kernels
	$(BIN)/python -m bench models
	$(BIN)/python -m bench newton
	$(BIN)/python -m bench checks
	$(BIN)/python -m bench gradients
	$(BIN)/python -m bench sessions
	$(BIN)/python -m bench edge
	$(BIN)/python -m bench references task=sotu
	$(BIN)/python -m bench references task=stdlib

# All that a CUDA device is for, in steps that go on where they were stopped: make gpu CORPUS=PATH. What it needs is
# installed first; the steps themselves, scripts/gpu.sh, need no network.
gpu: $(VENV)/.installed-gpu
	PYTHON=$(BIN)/python scripts/gpu.sh all

$(VENV)/.installed-gpu: $(VENV)/.installed-test
	$(PIP) --editable .[cuda]
	touch $@

# A seeded sample of small changes to the code, each tried against the tests of its module, into docs/mutation.md. It
# takes an hour or more, and goes on where it was stopped.
mutation: $(VENV)/.installed-test
	$(PIP) --editable .[mutation]
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python tests/mutation.py

# A training, exports, scores and a server, each through a hundred kill -9 at random moments.
kills: $(VENV)/.installed-test
	LIQUIDBENCH_KILLS=100 OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n0 -s -k kills tests/test_checkpoint.py tests/test_kills.py

clean:
	rm -rf $(VENV) runs reports
