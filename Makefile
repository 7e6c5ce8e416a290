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

# NVIDIA's bindings without their libraries, each apart: the tests make doubles of TensorRT and CUDA
# from them. What cannot be had here (8.6.1 is for Python 3.10 and 3.11) is skipped by the tests.
BINDINGS := \
	8.6.1:tensorrt-bindings==8.6.1 \
	10.16.1.11:tensorrt-cu12-bindings==10.16.1.11 \
	11.4.0.106:tensorrt-cu12-bindings==11.4.0.106 \
	lean-10.16.1.11:tensorrt-lean-cu12-bindings==10.16.1.11 \
	cuda-12.9:cuda-bindings==12.9.*,cuda-pathfinder>=1.1

.PHONY: demo test test-slow bindings clean

demo: $(VENV)/installed
	$(BIN)/attn-export build --fp16 -o $(BUNDLE)
	$(BIN)/attn-export parity $(BUNDLE)
	$(BIN)/attn-export bench $(BUNDLE) --quick

test: $(VENV)/installed-dev bindings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-slow: $(VENV)/installed-dev bindings
	$(BIN)/pytest -m slow

bindings: $(VENV)/installed-dev
	@mkdir -p $(VENV)/bindings
	@cd $(VENV)/bindings && for pair in $(foreach pair,$(BINDINGS),'$(pair)'); do \
	    folder=$${pair%%:*}; packages=$$(echo "$${pair#*:}" | tr , ' '); \
	    test -d "$$folder" && continue; \
	    ../bin/python -m pip install --disable-pip-version-check --quiet --no-deps \
	        --only-binary :all: --retries 1 --target "$$folder.part" $$packages \
	    && mv "$$folder.part" "$$folder" \
	    || { rm -rf "$$folder.part"; echo "without $$packages: the tests that need it skip"; }; \
	done

clean:
	rm -rf $(VENV) $(BUNDLE) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: $(SETUP)
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[cpu,export,text]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(INSTALL) -e '.[cpu,openvino,export,text,data,plot,dev]'
	touch $@
