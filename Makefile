# `make demo`, `make check`, `make test`, `make bench` and `make gpu` each do their own set-up from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo check test static bench gpu npu web docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in [(3, 11), (3, 12)] and "Python 3.11 or 3.12 is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,onnx,wandb]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m codec_demo --out_dir demo

# The compiler of one vendor: `make npu CHIP=rockchip`. Each has an environment of its own, because their packages exclude
# each other's versions.
CHIPS := $(basename $(notdir $(wildcard constraints-npu/*.txt)))

npu:
	$(if $(filter $(CHIP),$(CHIPS)),,$(error make npu CHIP=NAME, where NAME is one of: $(CHIPS)))
	$(MAKE) --no-print-directory .venv-npu/$(CHIP)/.ready

# Its wheels are for Python 3.10 alone.
.venv-npu/sophgo/.ready: PYTHON = python3.10

.venv-npu/%/.ready: constraints-npu/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check -r $<
	# tpu-mlir ships the C library of an older system, which newer libraries of this system refuse.
	cd $(@D) && rm -f lib/*/site-packages/tpu_mlir/lib/third_party/libc.so.6 \
		lib/*/site-packages/tpu_mlir/lib/third_party/libm.so.6 lib/*/site-packages/tpu_mlir/lib/third_party/libpthread.so.0
	touch $@

# What the page for browsers needs beside clang and lld: the tests of the page run where this is.
web: node_modules/onnxruntime-web

node_modules/onnxruntime-web:
	npm install --no-save --no-package-lock --no-audit --no-fund onnxruntime-web@1.30.0

# In the order of tests/conftest.py, the longest files first; by itself loadfile would begin with those of most tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What a change needs at every step: no test here starts a process, a browser or a training run.
check: static
	$(PYTEST) -m "not slow" -q

# Everything.
test: static
	$(PYTEST)

# Lint, format, types, and what may import what.
static: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks

# Checks and measurements on one GPU or two, ten minutes.
gpu: $(READY)
	@$(BIN)/python -m benchmarks.gpu

docs: $(READY)
	$(BIN)/python docs/make_options.py
	$(BIN)/python -m benchmarks.table

clean:
	rm -rf $(VENV) .venv-npu node_modules demo
