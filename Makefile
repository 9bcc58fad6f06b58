# make        sets everything up in .venv and trains the default configuration
# make test   sets everything up and runs what continuous integration runs: lint, types, tests
# make help   lists the rest
#
# Variables: PYTHON (the interpreter that .venv is made with), TORCH (what pip installs first, e.g. another version),
# TRAIN (arguments of the training, e.g. TRAIN="training.epochs=2"), BENCH (options of the benchmark, e.g.
# BENCH=--bench-full), RESULT (where its results go), AGAINST (earlier results to compare with), USREG_BUILD_CPU and
# USREG_BUILD_CUDA (see setup.py). For make gpu: GPU_STAGES (of `python -m tools.gpu --list`; all where it is empty), GPU
# (more options, e.g. GPU="--limit 600"), GPU_PYTHON (an interpreter that has a torch with CUDA; nothing is installed).

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
# Where there is a compiler the CPU library must build; without one the installation is pure Python, and works.
USREG_BUILD_CPU ?= $(if $(shell command -v c++ || command -v g++ || command -v clang++),1,auto)
export USREG_BUILD_CPU

RESULT ?= bench/results/latest.json

# What the benchmark compares with beside MONAI, and what that imports: installed without any other dependency, as none
# of them may choose a torch.
CONTENDERS := neurite==0.3.4 six==1.17.0 fireants==1.5.0
# This one is compiled at its installation, for GPUs.
GPU_CONTENDERS := $(if $(and $(shell command -v nvidia-smi),$(shell command -v nvcc)),fused-lncc==0.1.0)

GPU_STAGES ?=
GPU_PYTHON ?=
# Runs the tests in several processes.
GPU_PACKAGES := pytest-xdist>=3.6

# In two processes, each of which takes whole files: the tests of a file share what is slow to make. Threads that wait
# sleep, so that they do not slow the other process down.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=25

CPP_SOURCES := $(shell find csrc tests -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' -o -name '*.cuh' \))

.DEFAULT_GOAL := train
.PHONY: train test setup lint format types compile_commands sanitize contenders bench bench-register gpu budgets docs sdist wheel clean help

train: setup ## train the default configuration
	$(BIN)/python -m usreg.train $(TRAIN)

test: contenders lint types ## lint, types and tests
	$(PYTEST)

setup: $(VENV)/.installed ## make .venv, with torch and usreg in it

# torch comes first and by itself: usreg is built against the torch that it finds, and never chooses one.
$(VENV)/.torch: Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(CPP_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,test]"
	@touch $@

lint: setup ## check style (ruff, clang-format)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

format: setup ## apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_SOURCES)

types: setup ## check types (mypy)
	$(BIN)/mypy

compile_commands: setup ## compile_commands.json, with which clangd opens any file of csrc in an editor
	$(BIN)/python -m tools.compile_commands

sanitize: setup ## kernel tests under the sanitizers of addresses, undefined behaviour and threads
	tools/sanitize.sh address
	tools/sanitize.sh thread

contenders: setup $(VENV)/.contenders ## the packages that the benchmark compares with, into .venv

$(VENV)/.contenders: Makefile | $(VENV)/.installed
	@if $(BIN)/python -m pip install --quiet --no-deps $(CONTENDERS) && { test -z "$(GPU_CONTENDERS)" || \
	  $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation $(GPU_CONTENDERS); }; then touch $@; \
	else echo "Not all contenders can be installed: the benchmark says who is absent, and measures formulas instead."; fi

bench: contenders ## our losses against everything that you would pick instead: tables, pictures, or what got slower
	$(BIN)/python -m pytest bench --benchmark-only $(BENCH) --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=$(RESULT); measured=$$?; \
	$(BIN)/python -m bench.report $(RESULT) $(if $(AGAINST),--against $(AGAINST)) && exit $$measured

# Each contender's environment lies in a folder of its own in .venv-register.
bench-register: setup ## registrations of whole pairs, ours against other programs; DATA is the folder of the data sets
	$(if $(DATA),,$(error DATA is missing: make bench-register DATA=FOLDER, which holds brain_pair and hippocampus))
	$(BIN)/python -m bench.register --data $(DATA) $(BENCH)

# The check comes first, and by itself: a machine without a GPU need not download a torch to hear that. The stage `build`
# builds the CUDA library, for one GPU.
gpu: ## build, test and measure the kernels on this machine's GPU, and write a summary (docs/gpu.md)
ifeq ($(GPU_PYTHON),)
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m tools.gpu --check --set-up-follows
	USREG_BUILD_CUDA=0 $(MAKE) $(if $(filter bench,$(or $(GPU_STAGES),bench)),contenders,setup)
	$(BIN)/python -m pip install --quiet "$(GPU_PACKAGES)"
endif
	$(or $(GPU_PYTHON),$(BIN)/python) -m tools.gpu $(GPU_STAGES) $(GPU)

# Triton compiles the kernels, and other versions of it compile other machine code. These are held to the budgets too:
# the versions that torch has pinned. Each takes 0.7 GB.
TRITONS := 3.5.1 3.6.0 3.7.1

$(VENV)/triton-%/.installed: | $(VENV)/.installed
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) triton==$*
	@touch $@

budgets: setup $(TRITONS:%=$(VENV)/triton-%/.installed) ## what Triton compiles for all targets and dtypes, and older ones for some
	USREG_BUDGETS=all $(BIN)/python -m pytest tests/kernels/test_triton_compiled.py
	set -e; for version in $(TRITONS); do echo "Triton $$version"; PYTHONPATH=$(abspath $(VENV))/triton-$$version USREG_BUDGETS=few \
	  $(BIN)/python -m pytest tests/kernels/test_triton_compiled.py tests/kernels/test_triton_plan.py; done

# The site's tools need nothing of ours: they read the sources.
DOCS := mkdocs-material==9.8.2 mkdocstrings[python]==1.0.8

$(VENV)/.docs: Makefile | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet $(DOCS)
	@touch $@

docs: setup $(VENV)/.docs ## the documentation as a site, into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

sdist: setup ## source distribution, into dist/
	$(BIN)/python -c "from setuptools.build_meta import build_sdist; build_sdist('dist')"

wheel: setup ## wheel for this platform, into dist/
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist .

clean: ## remove builds and caches (not .venv, but the next set-up starts from the beginning)
	rm -rf build dist *.egg-info compile_commands.json usreg_kernels/libusreg_* $(VENV)/.installed
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

help: ## this list
	@grep -hE '^[a-z_-]+:.*## ' Makefile | sed -E 's/^([a-z_-]+):.*## /\1 /' | awk '{n=$$1; $$1=""; printf "%-17s%s\n", n, $$0}'
