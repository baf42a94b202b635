# Every target does its own set-up, in an environment of its own: .venv from the lock, .venv-oldest, .venv-latest,
# .venv-browser. torch comes first and alone: whatever depends on it would bring a build with several GB of CUDA packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
, := ,
PYTEST := -m pytest -n 2 --dist worksteal -q

# How torch is installed, to choose a build, as in TORCH_INSTALL="uv pip install --torch-backend cpu"
TORCH_INSTALL ?=
# What `make test-latest` still holds back; /dev/null for the newest torch as well, whose build is a large one.
LATEST_CONSTRAINTS ?= requirements/torch.txt

export HF_HUB_OFFLINE ?= 1

# $(call set_up,environment,constraints file,extras)
define set_up
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade --constraint $(2) pip setuptools
	VIRTUAL_ENV=$(abspath $(1)) $(or $(TORCH_INSTALL),$(1)/bin/python -m pip install --quiet) --upgrade --constraint $(2) torch
	$(1)/bin/python -m pip install --quiet --no-build-isolation --upgrade --upgrade-strategy eager --constraint $(2) \
		--editable ".[$(3)]"
	touch $(1)/.installed
endef

.PHONY: gpu install install-latest demo test test-all test-oldest test-latest test-transformers test-browser lock dist space quality style docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements/lock.txt
	$(call set_up,$(VENV),requirements/lock.txt,test$(,)quality)

.venv-oldest/.installed: pyproject.toml requirements/oldest.txt
	$(call set_up,.venv-oldest,requirements/oldest.txt,test)

.venv-browser/.installed: pyproject.toml requirements/browser.txt
	$(call set_up,.venv-browser,requirements/browser.txt,browser$(,)test)

demo: install
	$(BIN)/hf-tome demo --task all --out demo

# On a machine with a GPU, in its own environment (torch 2.11 or later): under ten minutes, unattended, no network.
# What it records is shown by docs/performance.md after `python scripts/make_docs.py`. On a CPU, to see that it works:
# make gpu GPU_OPTIONS="--quick --device cpu" GPU_OUT=gpu-results
GPU_OPTIONS ?=
GPU_OUT ?= benchmarks/measured
gpu:
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py --minutes 5 $(GPU_OPTIONS) --out $(GPU_OUT)/gpu.json
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_attention.py $(GPU_OPTIONS) --out $(GPU_OUT)/gpu_attention.json
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_step.py $(GPU_OPTIONS) --out $(GPU_OUT)/gpu_step.json
	PYTHONPATH=src $(PYTHON) benchmarks/gpu_diffusion.py --minutes 3 $(GPU_OPTIONS) --out $(GPU_OUT)/gpu_diffusion.json

# One config a row and test, so that every row, every config and nearly every pair runs in some test.
test: install
	$(BIN)/python $(PYTEST) --pairwise tests

# The full product of rows and configs, and the tests marked slow.
test-all: install
	RUN_SLOW=1 $(BIN)/python $(PYTEST) tests

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python $(PYTEST) --pairwise tests

# No stamp: what is newest is looked up each time.
install-latest:
	$(call set_up,.venv-latest,$(LATEST_CONSTRAINTS),test)

test-latest: install-latest
	.venv-latest/bin/python $(PYTEST) --pairwise tests

# transformers' own common model tests on merged models, with the locked release and then the latest one: over an hour on
# two cores. MODELS=vit,clip for some of the models of tests/support/zoo.py and its like.
MODELS ?=
test-transformers: install install-latest
	$(BIN)/python scripts/transformers_tests/run.py --workers 2 --models "$(MODELS)"
	.venv-latest/bin/python scripts/transformers_tests/run.py --workers 2 --models "$(MODELS)"

# The page of integrations/gradio_space in a real browser; an environment of its own, as gradio wants an older Pillow.
test-browser: .venv-browser/.installed
	command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -y -qq chromium; }
	HF_TOME_TEST_BROWSER=1 .venv-browser/bin/python -m pytest -q tests/integrations/test_gradio_browser.py

# The newest versions within the bounds of pyproject.toml, for all platforms, into the files that the targets above use.
COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --upgrade --no-annotate --custom-compile-command "make lock" \
	pyproject.toml requirements/tools.in
lock:
	test -x .venv-lock/bin/python || $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade uv
	$(COMPILE) --constraint requirements/torch.txt --extra test --extra quality --output-file requirements/lock.txt
	$(COMPILE) --constraint requirements/torch.txt --extra test --extra browser --output-file requirements/browser.txt
	$(COMPILE) --resolution lowest-direct --extra test --output-file requirements/oldest.txt

# What a release publishes; tests/project/test_packaging.py (slow) tries both files in empty environments.
dist: install
	rm -rf dist build src/*.egg-info
	$(BIN)/python -m build --no-isolation

space:
	$(PYTHON) scripts/make_space.py build/space

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/make_docs.py --check

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The generated pages, then every code block, then the site; in CI the tests do the last two.
docs: install
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python -m pytest -q tests/project/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv .venv-* demo site build dist *.egg-info src/*.egg-info
