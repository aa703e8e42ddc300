# make demo   photos in, labels out: environment, build, export, C++ program, picture
# make test   everything that can fail: Python tests, C++ tests, parity of the two
# make lint   formatting, types
# make bench  the operators beside PyTorch's own
# Each can be repeated; what is up to date is not built again. `make clean` starts over.

PYTHON ?= python3
# What pip installs as torch. PyTorch's site has the line for other builds, such as the small CPU one.
TORCH ?= torch==2.13.0
VENV ?= .venv
BUILD ?= build/cpp
MODEL ?= pvt_small

BIN := $(VENV)/bin
# Changing any of these builds the Python package again.
PACKAGE_SOURCES := VERSION setup.py pyproject.toml $(shell find build_tools csrc -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.txt')
PHOTOS := assets/photos
# Two test files at a time. Threads of one must not spin while those of the other want the core.
PARALLEL := -n 2 --dist loadfile

.DELETE_ON_ERROR:
.PHONY: demo test lint bench cpp clean FORCE

demo: out/$(MODEL).pt $(BUILD)/build.ninja
	cmake --build $(BUILD) --target pvt_infer
	@echo
	$(BUILD)/bin/pvt_infer --model out/$(MODEL).pt --topk 5 $(PHOTOS)
	@$(BUILD)/bin/pvt_infer --model out/$(MODEL).pt --topk 5 --format json $(PHOTOS) > out/predictions.jsonl
	@$(BIN)/python examples/plot_predictions.py out/predictions.png -i out/predictions.jsonl \
	  --title "$(MODEL)$$(cat out/$(MODEL).note)"
	@echo "$(MODEL)$$(cat out/$(MODEL).note)"
	@echo "picture: out/predictions.png"

test: $(VENV)/installed cpp
	OMP_WAIT_POLICY=passive $(BIN)/pytest $(PARALLEL) -m "slow or not slow"
	ctest --test-dir $(BUILD) --output-on-failure

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.cpp' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.ops

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

# Without a network the published weights cannot be had. The demo then says that its weights are
# random, and dates the file back so that the next run tries again.
out/$(MODEL).pt: $(VENV)/installed
	@mkdir -p out
	@if $(BIN)/pvt export $(MODEL) --weights official -o $@; then : > out/$(MODEL).note; else \
	  echo "WARNING: no published weights, so random ones are used: the labels will mean nothing"; \
	  echo " with random weights: these labels mean nothing" > out/$(MODEL).note; \
	  $(BIN)/pvt export $(MODEL) --weights random --seed 0 -o $@ && touch -t 200001010000 $@; fi

clean:
	rm -rf $(VENV) build out pvt_ext/lib pvt_ext/*.so *.egg-info
