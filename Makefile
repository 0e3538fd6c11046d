# Each target sets up what it needs: .venv, PyTorch, Debian packages where it may, the extension.
# `make help` prints what follows `##`.

PYTHON ?= python3
TORCH ?= torch==2.13.0
DEVICE ?= auto

VENV := .venv
BIN := $(VENV)/bin
FORMATTED := $(shell find csrc shaders tests torch_mlxnorm -regex '.*\.\(h\|cpp\|mm\|metal\)')
PYTHON_FILES := setup.py torch_mlxnorm tests csrc docs tools examples comfyui torch-ext

.PHONY: help demo test test-models test-models-versions fuzz stress test-arm64 test-versions test-sanitizers gpu-check mutants bench performance docs \
  test-docs wheel wheel-macos release-check lint format build system clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: build $(if $(filter sim,$(DEVICE)),system) ## check and time every op on the shapes of public models (DEVICE=cpu|mps|sim)
	$(BIN)/python -m torch_mlxnorm.bench.demo --device $(DEVICE)

JOBS ?= auto
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
test: build system ## the tests but those of models, or one op's (OP=rms_norm_add JOBS=1 PYTEST_ARGS="-k bits")
	$(PYTEST) --ignore=tests/models --ignore=tests/docs $(if $(OP),--op $(OP)) $(PYTEST_ARGS)

test-models: build system ## torch_mlxnorm.compile, small models of transformers, comfy-kitchen
	$(PYTEST) tests/models $(PYTEST_ARGS)

N ?= 100000
SEED ?= 0
CALLS ?= 10000
HARD_DEVICE = $(if $(filter auto,$(DEVICE)),cpu,$(DEVICE))
fuzz: build $(if $(filter mps,$(DEVICE)),system) ## random calls against float64 (N=100000 DEVICE=cpu|mps SEED=0 CASE=number)
	$(BIN)/python tests/fuzz.py $(N) --device $(HARD_DEVICE) --seed $(SEED) $(if $(CASE),--case $(CASE))

stress: build $(if $(filter mps,$(DEVICE)),system) ## 8 threads of mixed calls: equal bits, flat memory (DEVICE=cpu|mps CALLS=10000)
	$(BIN)/python tests/stress.py --device $(HARD_DEVICE) --calls $(CALLS)

test-models-versions: build ## accelerate with the oldest and newest transformers (VERSIONS="5.0.0")
	VERSIONS="$(VERSIONS)" $(BIN)/python tools/test_model_versions.py $(PYTEST_ARGS)

test-arm64: build ## build and test for arm64 Linux, emulated (ARM64_TORCH=torch==2.10.0)
	tools/test-arm64 $(PYTEST_ARGS)

test-versions: $(VENV)/.python system ## the tests with the oldest and newest PyTorch and Python (several GB)
	$(BIN)/python tools/test_versions.py $(PYTEST_ARGS)

test-sanitizers: build system ## CPU and simulated MPS under ASan, UBSan and TSan (KINDS="address undefined")
	$(BIN)/python tests/sanitizers/run.py $(KINDS)

gpu-check: build ## the Metal kernels on an NVIDIA GPU (TORCH=torch GPU_ARGS="--only bits")
	$(BIN)/python tests/gpu/check.py $(GPU_ARGS)

mutants: build system ## planted faults that the tests must catch (ONLY="barrier eps" TESTS_OF=commit)
	$(BIN)/python tests/mutants/run.py $(if $(ONLY),--only $(ONLY)) $(if $(TESTS_OF),--tests-of $(TESTS_OF))

bench: build ## every op against PyTorch, a copy and a plain kernel (BENCH_ARGS="--op rms_norm --set shapes")
	$(BIN)/python -m torch_mlxnorm.bench $(BENCH_ARGS)

FIGURES := docs/performance
performance: build ## the CPU's figures of docs/performance.md anew, and its tables and plots
	$(BIN)/python -m torch_mlxnorm.bench --device cpu --json $(FIGURES)/cpu.json
	$(BIN)/python -m torch_mlxnorm.bench.calls --json $(FIGURES)/calls.json
	$(BIN)/python -m torch_mlxnorm.bench.threads --json $(FIGURES)/threads.json
	$(BIN)/python -m torch_mlxnorm.bench.fresh --json $(FIGURES)/fresh.json
	$(BIN)/python -m torch_mlxnorm.bench.models --json $(FIGURES)/models.json
	$(BIN)/python -m torch_mlxnorm.bench.models --fresh --json $(FIGURES)/models_fresh.json
	$(BIN)/python -m torch_mlxnorm.bench.tables docs/performance.md

docs: build $(VENV)/.docs ## the documentation as pages, build/docs/html/index.html
	$(BIN)/python docs/site

test-docs: docs system ## those pages in headless Chromium
	tools/install-debian-packages --docs
	$(BIN)/python -m pytest tests/docs $(PYTEST_ARGS)

WHEEL ?= local
wheel: build ## a wheel for this machine and its PyTorch, checked, in build/wheel (WHEEL=local|pypi)
	rm -rf build/wheel
	MLXNORM_WHEEL=$(WHEEL) $(BIN)/pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python tests/wheels/check.py build/wheel/*.whl

MACOS_TORCH ?= 2.13.0
wheel-macos: $(VENV)/.python ## the macOS wheel, made on Linux by zig and checked, in build/wheel-macos (MACOS_TORCH=2.13.0)
	$(BIN)/python tests/wheels/macos.py $(MACOS_TORCH)

release-check: build ## all of these checks that a release has to pass, in one table (ONLY="lint changelog")
	$(BIN)/python tools/release_check.py $(ONLY)

lint: $(VENV)/.python ## ruff and clang-format
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	@$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(VENV)/.python ## mend what lint finds
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	@$(BIN)/clang-format -i $(FORMATTED)

# Contents decide, not times: a file may be deleted, or come back from another branch.
build: $(VENV)/.python ## the extension, into this folder
	@$(BIN)/python tools/sources.py || \
	  $(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .

system: ## what the Metal simulator needs of Debian
	tools/install-debian-packages

$(VENV)/.python: pyproject.toml
	tools/install-debian-packages --python
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	# PyTorch first and pinned: the extension is compiled against it, without build isolation.
	$(BIN)/pip install --quiet "$(TORCH)" "setuptools>=77"
	$(BIN)/pip install --quiet $$($(BIN)/python tools/extras.py test lint plot models $(if $(filter Linux,$(shell uname)),gpu))
	rm -f torch_mlxnorm/_build.py # of the PyTorch before
	touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.python
	$(BIN)/pip install --quiet $$($(BIN)/python tools/extras.py docs)
	touch $@

clean: ## all that was made here
	rm -rf $(VENV) build .cache *.egg-info torch_mlxnorm/_C.*so torch_mlxnorm/_build.py
