# Everything a fresh clone needs: Python 3.11 to 3.13 and make.
#   make install   an environment in $(VENV) with medvlp and everything for development
#   make test      lint, types, import layers, then the default test suite
#   make demo      phantom data -> store -> pre-training -> benchmark -> report.html
#   make demo-ct   the same in three dimensions, on phantom CTs
VENV ?= .venv
PYTHON ?= python3
DEMO ?= demo
DEMO_CT ?= demo_ct
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed

.PHONY: install lint test slow demo demo-ct clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread per process: two test processes share the cores, and results do not depend on the thread count.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	$(BIN)/python -m pytest -m slow

demo: install
	BIN=$(BIN) DEMO=$(DEMO) bash scripts/demo.sh

demo-ct: install
	BIN=$(BIN) DEMO=$(DEMO_CT) bash scripts/demo_ct.sh

clean:
	rm -rf $(DEMO) $(DEMO_CT) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
