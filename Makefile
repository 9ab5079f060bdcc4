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

demo: $(READY) demo/coco224
	$(BIN)/python train_accel.py --config recipes/demo.yaml
	$(BIN)/python -m codec.evaluate --coco_dir demo/coco224 --checkpoint demo/checkpoints/last.safetensors
	@echo "pictures: demo/recon (origin, pre, and one folder an epoch); curves: demo/checkpoints/curves.png"

demo/coco224: $(READY)
	$(BIN)/python -m coco224.prepare --coco_dir sample --crop random --crops_per_image 16 --out_dir demo/coco224 \
		--overwrite true

# The NPU compilers want other versions than the trainer, hence an environment of their own.
npu: .venv-npu/.ready

.venv-npu/.ready: pyproject.toml constraints-npu.txt
	$(PYTHON) -m venv .venv-npu
	.venv-npu/bin/pip install --quiet --disable-pip-version-check -c constraints-npu.txt -e '.[npu]'
	touch $@

# What the page for browsers needs beside clang and lld: the tests of the page run where this is.
web: node_modules/onnxruntime-web

node_modules/onnxruntime-web:
	npm install --no-save --no-package-lock --no-audit --no-fund onnxruntime-web@1.30.0

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

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
	$(BIN)/python -m benchmarks.gpu

docs: $(READY)
	$(BIN)/python docs/make_options.py
	$(BIN)/python -m benchmarks.table

clean:
	rm -rf $(VENV) .venv-npu node_modules demo
