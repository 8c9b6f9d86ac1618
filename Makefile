# Everything installs into .venv, from constraints.txt: the versions this tree was tested with.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-full soak lint clean

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/installed  ## train a little, build the shipped reference, verify, predict, time
	$(BIN)/python examples/demo.py demo-out

test: $(VENV)/installed  ## everything that needs no GPU, some 17 minutes on two cores
	$(BIN)/python -m pytest tests

test-full: $(VENV)/installed  ## and every kernel of every plan, compiled for every architecture
	$(BIN)/python -m pytest tests -m 'not soak and not gpu'

soak: $(VENV)/installed  ## the slow ones: builds killed 50 times, 200,000 mutated engine files
	$(BIN)/python -m pytest tests -m soak --override-ini addopts="--strict-markers --import-mode=importlib"

# The machine's own Python with its PyTorch, Triton and cuda-bindings: nothing comes from a network.
GPU_PYTHON ?= python3

.PHONY: gpu
gpu:  ## everything that needs an NVIDIA GPU, nine minutes at a time; given again it goes on (benchmarks/results)
	$(GPU_PYTHON) benchmarks/gpu/run.py --out gpu-out $(GPU_FLAGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info
