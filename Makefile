# Everything installs into .venv, from constraints.txt: the versions this tree was tested with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Triton's server wants a NumPy of its own.
SERVE_VENV := .venv-serve

.PHONY: demo test test-full soak serve-env lint clean

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(SERVE_VENV)/installed: setup.py constraints-serve.txt
	$(PYTHON) -m venv $(SERVE_VENV)
	$(SERVE_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	$(SERVE_VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints-serve.txt -e '.[serve,openvino]'
	touch $@

serve-env: $(SERVE_VENV)/installed  ## the environment that the tests of serving start Triton's server in; Python 3.11 or 3.12

demo: $(VENV)/installed  ## train a little, build the shipped reference, verify, predict, time
	$(BIN)/python examples/demo.py demo-out

test: $(VENV)/installed serve-env  ## everything that needs no GPU, some 25 minutes on two cores
	$(BIN)/python -m pytest tests

test-full: $(VENV)/installed serve-env  ## and every kernel of every plan, compiled for every architecture
	$(BIN)/python -m pytest tests -m 'not soak and not gpu'

soak: $(VENV)/installed serve-env  ## the slow ones: builds killed 50 times, 200,000 mutated engine files, 20 minutes of serving
	$(BIN)/python -m pytest tests -m soak --override-ini addopts="--strict-markers --import-mode=importlib"

# Measure on a quiet machine. Results and page: build/benchmarks. Faster and coarser: make bench BENCH_FLAGS=--quick
.PHONY: bench
bench: $(VENV)/installed  ## every engine that this CPU runs beside every peer that is installed: under 15 minutes
	$(BIN)/python -m pytest benchmarks --benchmark-only $(BENCH_FLAGS)
	$(BIN)/python -m benchmarks.report build/benchmarks/run.json --out build/benchmarks/report

# CMake, a C++17 compiler and nlohmann-json (Debian: cmake g++ ninja-build nlohmann-json3-dev).
NATIVE := tkfnet_engine/native

.PHONY: native fuzz
native:  ## libtkfnet, the C library, and its examples, in build/native; installed into tkfnet_engine/native/lib
	cmake -S $(NATIVE) -B build/native -DCMAKE_INSTALL_LIBDIR=lib
	cmake --build build/native --parallel
	cmake --install build/native --prefix $(NATIVE)

# Clang with its runtime (Debian: clang libclang-rt-14-dev). New inputs that reach new code are kept in build/corpus.
FUZZ_SECONDS ?= 300
fuzz:  ## libFuzzer over libtkfnet's file reader and over the geometry of frames, five minutes each
	cd $(NATIVE) && cmake --preset fuzz && cmake --build --preset fuzz --parallel
	for name in engine_file frame; do \
	  mkdir -p build/corpus/$$name && build/native-fuzz/programs/fuzz_$$name -max_total_time=$(FUZZ_SECONDS) -timeout=20 \
	    -print_final_stats=1 build/corpus/$$name tests/native/corpus/$$name || exit 1; \
	done

# The machine's own Python with its PyTorch, Triton and cuda-bindings: nothing comes from a network.
GPU_PYTHON ?= python3

.PHONY: gpu
gpu:  ## everything that needs an NVIDIA GPU, nine minutes at a time; given again it goes on (benchmarks/results)
	$(GPU_PYTHON) benchmarks/gpu/run.py --out gpu-out $(GPU_FLAGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) $(SERVE_VENV) demo-out build dist *.egg-info
