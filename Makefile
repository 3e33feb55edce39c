# make quickstart   sets up .venv and runs the whole path on the embedded default
# make test         sets up .venv and runs lint, types and tests
# make test-avx2    runs what depends on the processor as on one without AVX-512
# make test-installed  builds the wheel and uses it from another folder
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEVICE ?= auto

.PHONY: quickstart test test-avx2 test-installed test-slow test-reliability test-cuda lint setup setup-dev clean

quickstart: setup
	$(BIN)/python scripts/quickstart.py --device $(DEVICE)

# A process for each core, of one thread each.
test: setup-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# torch and oneDNN then use no later instructions. Left out are torch's compiler, which takes minutes, and processes.
test-avx2: setup-dev
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest tests/planner \
	  tests/quantisation tests/export tests/training/test_execution.py tests/distillation \
	  -k "not compiled_equals_eager and not code_compiled and not processes and not shared_out"

# The wheel in a fresh environment, used from another folder.
test-installed: setup-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/programs/test_packaging.py -m "slow or not slow"

test-slow: setup-dev
	$(BIN)/python -m pytest -m "slow and not cuda" --timeout 3600

# Kills, full disks and damaged states many times, the property tests with twenty times the cases (over 10,000 damaged
# files), and 1,000 random command lines: hours.
test-reliability: setup-dev
	$(BIN)/python -m pytest tests/training/test_reliability.py -m slow --timeout 3600
	$(BIN)/python -m pytest tests/files --hypothesis-profile=slow --timeout 3600
	$(BIN)/python -m pytest tests/programs/test_command_lines.py -m slow --timeout 3600

test-cuda: setup-dev
	$(BIN)/python -m pytest -m cuda

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/installed

setup-dev: $(VENV)/installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) results/quickstart data/quickstart
