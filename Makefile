# make demo | test | lint | clean. The first use makes .venv and installs arvid there.
#   PYTHON=python3.12        the interpreter that makes .venv (3.11 or newer)
#   TORCH_INDEX=https://...  package index for torch, such as https://download.pytorch.org/whl/cpu (default: pip's own)

PYTHON ?= python3
TORCH_INDEX ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt
INSTALLED := $(VENV)/.installed
VIDEO := demo.mp4

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/arvid generate "a red ball bounces around on a navy background" --seconds 5 -o $(VIDEO)
	@echo "The video is in $(CURDIR)/$(VIDEO)"

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/pyright

# What the other targets left behind, but for .venv, which is dear: remove that by hand to install from scratch.
clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis $(VIDEO)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, for its index need not hold the pinned versions of everything else.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "arvid needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	$(PIP) -e '.[dev,evaluation,plots,test]'
	touch $@
