# `make run` and `make test` work from a clean clone: they set up .venv once and are quick the second time.
PYTHON ?= python3
VENV   ?= .venv
VIDEO  ?=
OUT    ?= out
LMMS   ?= .venv-lmms
VLLM   ?= .venv-vllm
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.vtoken-installed
# two worker processes share the cores, so torch gets one thread in each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q -m

.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-all test-versions test-demo test-lmms test-vllm lint bench gpu fuzz clean

help: ## print this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s%s\n", $$1, $$2}'

setup: $(STAMP) ## set up $(VENV) with the pinned packages (run and test do it too)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f"vtoken needs Python 3.10 to 3.13; this is {v[0]}.{v[1]}. Choose one with: make PYTHON=python3.12")'
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing vtoken and the pinned packages into $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: $(STAMP) ## the main job on a rendered lecture, or on VIDEO=path; results in $(OUT)/
	@OMP_WAIT_POLICY=passive $(BIN)/python -m vtoken.cli.main_job $(if $(VIDEO),--video '$(VIDEO)') --out '$(OUT)'

test: $(STAMP) ## the tests of the library; ARGS= is handed to pytest
	@$(PYTEST) 'not browser and not slow' $(ARGS)

test-slow: $(STAMP) ## the tests of research, training, benchmarks and the page, and of the wheel
	@$(PYTEST) 'slow and not browser' $(ARGS)

test-all: $(STAMP) ## both
	@$(PYTEST) 'not browser' $(ARGS)

test-versions: $(STAMP) ## the contracts with transformers: its oldest supported version and the newest on the registry
	@.ci/versions '$(VENV)' $(ARGS)

test-demo: $(STAMP) ## the page of vtoken demo in a real Chromium (CHROMIUM=path where it is not found)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt 'playwright>=1.50'
	@OMP_NUM_THREADS=1 $(if $(CHROMIUM),CHROMIUM='$(CHROMIUM)') $(BIN)/python -m pytest -q -m browser tests/demos $(ARGS)

test-lmms: ## lmms-eval from end to end with the reference model and a tiny one, in an environment of its own (minutes; LMMS=folder)
	@test -x $(LMMS)/bin/python || $(PYTHON) -m venv $(LMMS)
	@$(LMMS)/bin/python -m pip install -qq --disable-pip-version-check -r tests/lmms/requirements.txt
	@cp tests/vllm/torchvision_on_cpu.py "$$($(LMMS)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	@echo 'import torchvision_on_cpu' > "$$($(LMMS)/bin/python -c 'import site; print(site.getsitepackages()[0])')/torchvision_on_cpu.pth"
	@$(LMMS)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(LMMS)/bin/python -m tests.lmms.run '$(OUT)/lmms'

test-vllm: $(VLLM)/.vtoken-installed ## the plug-in for vLLM on the CPU with tiny checkpoints, in an environment of its own (VLLM=folder; ARGS=qwen3_vl)
	@OMP_NUM_THREADS=1 $(VLLM)/bin/python -m tests.vllm.run '$(OUT)/vllm' $(ARGS)

$(VLLM)/.vtoken-installed: tests/vllm/requirements.txt tests/vllm/torchvision_on_cpu.py pyproject.toml
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check -r tests/vllm/requirements.txt
	@$(VLLM)/bin/python -m pip uninstall -qq -y torchaudio torchcodec # linked against CUDA
	@cp tests/vllm/torchvision_on_cpu.py "$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	@echo 'import torchvision_on_cpu' > "$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')/torchvision_on_cpu.pth"
	@$(VLLM)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -e .
	@touch $@

lint: $(STAMP) ## ruff and the type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

bench: $(STAMP) ## every benchmark that needs one clip at most: VIDEO=path, or the rendered lecture
	@test -n '$(VIDEO)' || test -f '$(OUT)/lecture.mp4' || $(BIN)/python -c "from vtoken.cli.main_job import lecture; lecture('$(OUT)', 8.0)"
	@for name in overhead encoder; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done
	@for name in gate_pass gate_cost; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name '$(or $(VIDEO),$(OUT)/lecture.mp4)'; done

gpu: $(STAMP) ## every figure that needs a GPU, into docs/benchmarks; without one it says so and fails
	@$(BIN)/python -m benchmarks.gpu --out docs/benchmarks $(ARGS)

fuzz: $(STAMP) ## damaged files and odd arguments for 10 minutes; a second run goes on (CASES=10000 in all)
	@OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m benchmarks.fuzz --cases $(or $(CASES),10000) --log '$(OUT)/fuzz.jsonl' --summary docs/benchmarks/fuzz.md

clean: ## remove build outputs, not $(VENV)
	@rm -rf build dist out report *.egg-info .pytest_cache .ruff_cache .hypothesis
