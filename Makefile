# Every target does its own set-up, in .venv. torch comes first and alone: whatever depends on it would bring a build with
# several GB of CUDA packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1

.PHONY: install demo test test-browser space quality style docs clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[test,quality]"
	touch $(STAMP)

demo: install
	$(BIN)/hf-tome demo --task all --out demo

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -q tests

# The page of integrations/gradio_space in a real browser; not part of `make test`, as gradio wants an older Pillow.
test-browser: install
	$(BIN)/python -m pip install --quiet --editable ".[browser]"
	command -v chromium || command -v google-chrome || { apt-get update -qq && apt-get install -y -qq chromium; }
	HF_TOME_TEST_BROWSER=1 $(BIN)/python -m pytest -q tests/integrations/test_gradio_browser.py

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
	rm -rf $(VENV) demo site build dist *.egg-info src/*.egg-info
