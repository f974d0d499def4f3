# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv and install into it first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORE := $(VENV)/.installed
STAMP := $(VENV)/.developed

.PHONY: demo test lint types docs dist bench clean

demo: $(CORE)
	$(BIN)/bezoar compare quickstart --jobs 2 --out runs/quickstart

# One process a core; threads of torch beside them would only be in the way. Tests that start servers and clients of
# their own come last and have the machine for themselves.
test: $(STAMP) lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"
	$(BIN)/python -m pytest -m slow tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -j auto -c docs -d build/doctrees . build/site
	@echo "open build/site/index.html"

dist: $(STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

bench: $(STAMP)
	$(BIN)/python benchmarks/round.py

clean:
	rm -rf $(VENV) runs dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The demo needs the library alone; the rest all of its extras, gigabytes of them.
$(CORE): pyproject.toml constraints.txt src/bezoar/_version.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $(CORE)

# Tests and benchmarks load ByzFL's aggregators only. What it depends on besides (torchvision, seaborn) is for its own
# benchmarks, hence --no-deps.
$(STAMP): $(CORE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt byzfl==0.0.11
	touch $(STAMP)
