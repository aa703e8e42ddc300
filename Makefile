# make demo   photos in, labels out: environment, build, export, C++ program, picture
# make test   everything that can fail: Python tests, C++ tests, parity of the two
# make lint   formatting, types
# make bench  the operators beside PyTorch's own
# make aarch64-test  the operators compiled for 64-bit ARM, their kernels' tests in an emulator
# make gpu-test, gpu-bench  the CUDA kernels on a GPU, in a Python with a CUDA build of torch
# Each can be repeated; what is up to date is not built again. `make clean` starts over.

PYTHON ?= python3
# What pip installs as torch. PyTorch's site has the line for other builds, such as the small CPU one.
TORCH ?= torch==2.13.0
VENV ?= .venv
BUILD ?= build/cpp
MODEL ?= pvt_small

BIN := $(VENV)/bin
# Changing any of these builds the Python package again.
PACKAGE_SOURCES := VERSION setup.py pyproject.toml $(shell find build_tools csrc -name '*.py' -o -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.txt')
PHOTOS := assets/photos
CIFAR10_PHOTOS := $(addprefix $(PHOTOS)/, airplane.jpg cat.jpg horse.jpg)
# Two test files at a time. Threads of one must not spin while those of the other want the core.
PARALLEL := -n 2 --dist loadfile

.DELETE_ON_ERROR:
.PHONY: demo test lint bench aarch64-test gpu-test gpu-bench cpp clean FORCE

# Answers by $(MODEL) with its published weights or, where these could not be had, by pvt_nano, whose
# weights are in the package; it knows the ten classes of CIFAR-10, so it sees photos of these.
demo: out/$(MODEL).pt out/pvt_nano.pt $(BUILD)/build.ninja
	cmake --build $(BUILD) --target pvt_infer
	@echo
	@if [ -e out/$(MODEL).random ]; then \
	  tools/demo.sh $(BUILD)/bin/pvt_infer $(BIN)/python pvt_nano $(CIFAR10_PHOTOS) && \
	  echo "out/$(MODEL).pt has random weights, for want of the published ones: it runs, but its answers mean nothing"; \
	else tools/demo.sh $(BUILD)/bin/pvt_infer $(BIN)/python $(MODEL) $(PHOTOS); fi

test: $(VENV)/installed cpp
	OMP_WAIT_POLICY=passive $(BIN)/pytest $(PARALLEL) -m "slow or not slow"
	ctest --test-dir $(BUILD) --output-on-failure

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.cu' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.ops

aarch64-test: $(VENV)/torch
	tools/aarch64_test.sh $(BIN)/python

# ---- on a machine with a GPU ----

# A Python with a CUDA build of torch (2.10 or newer) and pytest; nothing is installed but this package.
GPU_PYTHON ?= python3

# What gpu-bench writes, GPU_RESULT.json, .svg and .png, and the minutes it may take, builds included.
GPU_RESULT ?= benchmarks/results/gpu
GPU_MINUTES ?= 9

gpu-test:
	tools/gpu_build.sh "$(GPU_PYTHON)"
	tools/gpu_test.sh "$(GPU_PYTHON)"

gpu-bench:
	end=$$(($$(date +%s) + 60 * $(GPU_MINUTES))); tools/gpu_build.sh "$(GPU_PYTHON)" && \
	$(GPU_PYTHON) -m benchmarks.gpu --minutes $$((($$end - $$(date +%s)) / 60)) --json $(GPU_RESULT).json --plot $(GPU_RESULT)

# ---- Python environment ----

# Another PYTHON or TORCH than last time starts a new environment.
build/environment: FORCE
	@mkdir -p build
	@echo "$(PYTHON) $(TORCH)" | cmp -s - $@ || echo "$(PYTHON) $(TORCH)" > $@

$(VENV)/torch: build/environment
	PYTHON="$(PYTHON)" tools/system_packages.sh
	rm -rf $(BUILD)
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)" numpy
	touch $@

$(VENV)/installed: $(VENV)/torch $(PACKAGE_SOURCES)
	$(BIN)/pip install --quiet --editable ".[cli,plot,train,dev]"
	touch $@

# ---- C++ runtime, against the LibTorch in the environment's torch ----

$(BUILD)/build.ninja: | $(VENV)/torch
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_PREFIX_PATH="$$($(BIN)/python -c 'import torch; print(torch.utils.cmake_prefix_path)')"

cpp: $(BUILD)/build.ninja
	cmake --build $(BUILD)

# ---- model file ----

# Without a network the published weights cannot be had. The file then gets random ones, and an old
# date, so that the next run tries again.
out/%.pt: $(VENV)/installed
	@mkdir -p out
	@if $(BIN)/pvt export $* -o $@; then rm -f out/$*.random; else \
	  echo "WARNING: no published weights of $*, so $@ gets random ones"; \
	  touch out/$*.random; \
	  $(BIN)/pvt export $* --weights random --seed 0 -o $@ && touch -t 200001010000 $@; fi

clean:
	rm -rf $(VENV) build out pvt_ext/lib pvt_ext/*.so *.egg-info
