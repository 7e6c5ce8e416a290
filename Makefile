# make demo    build a bundle from the reference model, prove it and measure it
# make test    lint, types and the fast tests       make test-slow    the tests that take minutes
# make clean   remove what these targets made       PYTHON=python3.12 chooses the interpreter
#
# Everything lands in .venv. On Linux, PyPI's torch brings CUDA; for the small CPU build:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := demo-bundle
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
SETUP := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test test-slow clean

demo: $(VENV)/installed
	$(BIN)/attn-export build --fp16 -o $(BUNDLE)
	$(BIN)/attn-export parity $(BUNDLE)
	$(BIN)/attn-export bench $(BUNDLE) --quick

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-slow: $(VENV)/installed-dev
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) $(BUNDLE) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: $(SETUP)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[cpu,export,text]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e '.[cpu,export,text,dev]'
	touch $@
