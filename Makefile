# `make run` and `make test` work from a clean clone: they set up .venv once and are quick the second time.
PYTHON ?= python3
VENV   ?= .venv
VIDEO  ?=
OUT    ?= out
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.vtoken-installed
# two worker processes share the cores, so torch gets one thread in each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

.DEFAULT_GOAL := help
.PHONY: help setup run test lint bench clean

help: ## print this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(STAMP) ## set up $(VENV) with the pinned packages (run and test do it too)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f"vtoken needs Python 3.10 to 3.13; this is {v[0]}.{v[1]}. Choose one with: make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing vtoken and the pinned packages into $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(STAMP) ## the main job on a rendered lecture, or on VIDEO=path; results in $(OUT)/
	@$(BIN)/python -m vtoken.bench.main_job $(if $(VIDEO),--video '$(VIDEO)') --out '$(OUT)'

test: $(STAMP) ## the test suite; ARGS= is handed to pytest
	@$(PYTEST) $(ARGS)

lint: $(STAMP) ## ruff and the type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

bench: $(STAMP) ## every benchmark of benchmarks/, figures on stdout
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## remove build outputs, not $(VENV)
	@rm -rf build dist out report *.egg-info .pytest_cache .ruff_cache .hypothesis
