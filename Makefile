# The verbs for people and for CI. Every one makes what it needs; none needs root.
SHELL := /bin/sh
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
SOURCES := $(wildcard runtime/_ext/*.pyx runtime/_ext/*.pxd) setup.py pyproject.toml

.PHONY: demo build test test-mlflow lint typecheck bench bench-drift bench-memory bench-ingest bench-checkins bench-poc sanitize aarch64 tflite-runtime annotate wheel docs clean view torture firmware fuzz

demo: $(VENV)/.demo
	$(BIN)/python examples/activity/demo.py $(if $(KEEP),--keep)

build: $(VENV)/.dev

# Files of tests run side by side, a file in one process; more processes than four would only build the same things.
test: $(VENV)/.dev
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile -m "not long and not mlflow" $(ARGS)

# Against MLflow's own server, which is installed once into build/mlflow-env.
test-mlflow: $(VENV)/.dev
	bash scripts/mlflow_server.sh install
	$(BIN)/pytest -m mlflow $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(BIN):$$PATH" $(BIN)/cython-lint runtime/_ext   # it calls pycodestyle by name
	$(BIN)/python scripts/check_version.py

typecheck: $(VENV)/.dev view
	$(BIN)/mypy -p tinylcm -p tinysphere -p firmware_bridge
	MYPYPATH=build/view:examples/activity:examples/board_activity:tests/support:scripts \
	  $(BIN)/mypy examples/activity examples/board_activity benchmarks scripts

bench: $(VENV)/.dev
	$(PIP) install -e ".[test,dev,bench]"
	$(if $(WRITE),TINYMLOPS_WRITE=1) $(BIN)/pytest benchmarks --benchmark-only --benchmark-disable-gc -q $(ARGS)

# frouros pins numpy < 2.2, which river 0.26 does not work with: it is installed without its pins, in a place of its own.
bench-drift: build/bench-drift/.ready
	build/bench-drift/bin/python -m benchmarks.drift_quality $(ARGS)

build/bench-drift/.ready: $(SOURCES)
	$(PYTHON) -m venv build/bench-drift
	build/bench-drift/bin/python -m pip --disable-pip-version-check -q install "river==0.26.1" scikit-learn matplotlib \
	  requests tqdm scipy -e .
	build/bench-drift/bin/python -m pip --disable-pip-version-check -q install --no-deps "frouros==0.9.0"
	@touch $@

bench-ingest: $(VENV)/.dev
	$(PIP) install -e ".[test,dev,bench]"
	$(BIN)/python -m benchmarks.ingest $(if $(WRITE),--write) $(ARGS)

bench-checkins: $(VENV)/.dev
	$(BIN)/python -m benchmarks.checkins $(if $(WRITE),--write) $(ARGS)

bench-memory: $(VENV)/.dev
	$(if $(WRITE),TINYMLOPS_WRITE=1) $(BIN)/python -m benchmarks.memory $(ARGS)

# POC_MODEL=mobilenet_v2_features_u8.tflite: not in the repository, see benchmarks/poc.py. With Python 3.11 it is measured
# on tflite-runtime too, which needs numpy 1 and so a place of its own; the extensions are those of this tree.
bench-poc: $(VENV)/.dev view
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] > (3, 11))' && [ ! -e build/bench-poc/.ready ]; then \
	  $(PYTHON) -m venv build/bench-poc && build/bench-poc/bin/python -m pip --disable-pip-version-check -q install \
	  "tflite-runtime==2.14.0" "numpy<2" msgpack urllib3 psutil pynacl && touch build/bench-poc/.ready; fi
	$(if $(WRITE),TINYMLOPS_WRITE=1) PYTHONPATH=build/view $(BIN)/python -m benchmarks.poc \
	  $(if $(POC_MODEL),--poc-model $(POC_MODEL)) \
	  $$(test -e build/bench-poc/.ready && echo --other build/bench-poc/bin/python) $(ARGS)

tflite-runtime:
	bash scripts/tflite_runtime.sh

# Faults at length: power cuts, kills, faults of the operating system, hostile packages. WRITE=1 puts the figures into
# docs/reliability.md; WRITE=merge only those of this run, for a part of it such as ARGS="-k kill". Needs strace.
torture: $(VENV)/.dev
	TINYMLOPS_TORTURE=1 $(if $(WRITE),TINYMLOPS_WRITE=$(WRITE)) $(BIN)/pytest -q tests/torture $(ARGS)

sanitize:
	bash scripts/sanitize.sh

aarch64: $(VENV)/.dev
	bash scripts/aarch64.sh

# The example for QEMU's MPS2 board, and what the C library takes on a Cortex-M3.
firmware: $(BIN)/python
	@command -v arm-none-eabi-gcc >/dev/null \
	  || { echo "needs a compiler for Cortex-M: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi (qemu-system-arm runs it)"; exit 1; }
	@$(BIN)/python -c 'import numpy' 2>/dev/null || $(PIP) install numpy
	$(MAKE) -s -C firmware_bridge/c mps2 OUT=$(CURDIR)/build/firmware PYTHON=$(CURDIR)/$(BIN)/python
	$(BIN)/python scripts/firmware_size.py

# The C library under libFuzzer, ASan and UBSan: ten million inputs, or INPUTS=. Needs clang and its runtime.
fuzz: $(VENV)/.dev
	bash scripts/fuzz_c.sh $(or $(INPUTS),10000000)

annotate: $(VENV)/.dev
	TINYMLOPS_ANNOTATE=1 $(BIN)/python setup.py -q build_ext --force --build-lib build/annotate
	@echo "open build/cython/runtime/_ext/*.html"

wheel: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist   # the wheel is built from the sdist
	@ls -l dist

docs: $(VENV)/.dev
	$(BIN)/python scripts/make_docs.py
	$(BIN)/pytest -q tests/test_docs.py

# mypy and the tests of layering look at the folders under their import names.
view:
	@mkdir -p build/view
	@ln -sfn ../../runtime build/view/tinylcm
	@ln -sfn ../../server build/view/tinysphere
	@ln -sfn ../../firmware_bridge build/view/firmware_bridge

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "needs $(PYTHON): apt-get install python3 python3-venv python3-dev gcc"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "needs Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=..."; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo "needs a C compiler: apt-get install gcc libc6-dev"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "could not make a virtual environment: apt-get install python3-venv python3-dev"; rm -rf $(VENV); exit 1; }

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	@echo "building TinyMLOps into $(VENV) ..."
	$(PIP) install -e ".[onnx,server]"
	@touch $@

$(VENV)/.dev: $(BIN)/python $(SOURCES)
	@echo "building TinyMLOps and what its tests need into $(VENV) ..."
	$(PIP) install -e ".[test,dev]"
	@touch $@ $(VENV)/.demo

clean:
	rm -rf build dist *.egg-info $(VENV)
