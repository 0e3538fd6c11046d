# make demo    check and time every op on the shapes of public models (DEVICE=cpu|mps|sim)
# make test    the whole test suite
# make fuzz    N random calls against float64 (N=100000 DEVICE=cpu|mps SEED=0 CASE=number)
# make stress  8 threads of mixed calls: equal bits, flat memory (DEVICE=cpu|mps CALLS=10000)
# make test-arm64  build and test for arm64 Linux, emulated (ARM64_TORCH=torch==2.10.0)
# make test-versions  the tests with the oldest and newest PyTorch and Python (several GB)
# make test-sanitizers  CPU and simulated MPS under ASan, UBSan and TSan (KINDS="address undefined")
# make bench   every op on the CPU against PyTorch
# make lint    ruff and clang-format; `make format` mends what they find
#
# Each sets up what it needs: .venv, PyTorch, Debian packages where it may, the extension.

PYTHON ?= python3
TORCH ?= torch==2.13.0
DEVICE ?= auto

VENV := .venv
BIN := $(VENV)/bin
NATIVE := $(shell find csrc shaders -name '*.[hc]*' -o -name '*.m[me]*')
FORMATTED := $(shell find csrc shaders tests -regex '.*\.\(h\|cpp\|mm\|metal\)')
PYTHON_FILES := setup.py torch_mlxnorm tests benchmarks csrc tools

.PHONY: demo test fuzz stress test-arm64 test-versions test-sanitizers bench lint format build system clean

demo: build $(if $(filter sim,$(DEVICE)),system)
	$(BIN)/python benchmarks/demo.py --device $(DEVICE)

test: build system
	$(BIN)/python -m pytest $(PYTEST_ARGS)

N ?= 100000
SEED ?= 0
CALLS ?= 10000
HARD_DEVICE = $(if $(filter auto,$(DEVICE)),cpu,$(DEVICE))
fuzz: build $(if $(filter mps,$(DEVICE)),system)
	$(BIN)/python tests/fuzz.py $(N) --device $(HARD_DEVICE) --seed $(SEED) $(if $(CASE),--case $(CASE))

stress: build $(if $(filter mps,$(DEVICE)),system)
	$(BIN)/python tests/stress.py --device $(HARD_DEVICE) --calls $(CALLS)

test-arm64: build
	tools/test-arm64 $(PYTEST_ARGS)

test-versions: $(VENV)/.python system
	$(BIN)/python tools/test_versions.py $(PYTEST_ARGS)

test-sanitizers: build system
	$(BIN)/python tests/sanitizers/run.py $(KINDS)

bench: build
	$(BIN)/python benchmarks/cpu.py

lint: $(VENV)/.python
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	@$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

format: $(VENV)/.python
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	@$(BIN)/clang-format -i $(FORMATTED)

build: $(VENV)/.built

# Compilers of the Metal simulator, and what an empty Debian lacks to begin with.
system:
	tools/install-debian-packages

$(VENV)/.python: pyproject.toml
	tools/install-debian-packages --python
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	# PyTorch first and pinned: the extension is compiled against it, without build isolation.
	$(BIN)/pip install --quiet "$(TORCH)" "setuptools>=77"
	$(BIN)/pip install --quiet $$($(BIN)/python tools/extras.py test lint)
	touch $@

$(VENV)/.built: $(VENV)/.python setup.py $(NATIVE)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) build .cache *.egg-info torch_mlxnorm/_C.*so torch_mlxnorm/_build.py
