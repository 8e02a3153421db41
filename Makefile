# One-word commands; `make help` lists them. Needs GNU make and Python 3.11 or newer, nothing else.
#
# All tools live in .venv. It carries three stamps: `whole` (the last installation finished, and where: its files name
# this folder), `core` and `dev` (what is in it). All are removed before an installation and set after it, so an
# interrupted one, or a folder that was moved, starts afresh instead of half broken.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
CANDIDATES := $(or $(PYTHON),python3.11 python3 python3.12 python3.13 python3.14 python)
PIP := $(BIN)/python -m pip install -qq --no-input --disable-pip-version-check -c constraints.txt

ifneq ($(shell cat $(VENV)/whole 2>/dev/null),$(CURDIR))
UNFINISHED := unfinished
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check lint types docs wheel clean unfinished

help:
	@echo 'make demo    the story in one screen: why a plan by hand dies, and the proven one'
	@echo 'make test    all tests, with doctests and the documents'"'"' examples (ARGS="-k name" picks some)'
	@echo 'make check   lint, format, types, links, examples and notebooks (make lint, types, docs: one of them)'
	@echo 'make wheel   build dist/moeplan-*.whl'
	@echo 'make clean   remove .venv and everything else that was made here'
	@echo 'PYTHON=...   use this interpreter (3.11 or newer) for a new .venv'

demo: $(VENV)/core
	@$(BIN)/moeplan demo

# One process a core, each with a run of neighbouring tests (they share what is costly to set up) until one is idle.
test: $(VENV)/dev
	@$(BIN)/pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

check: lint types docs

lint: $(VENV)/dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@echo 'lint: fine'

types: $(VENV)/dev
	@$(BIN)/mypy

docs: $(VENV)/dev
	@$(BIN)/python tests/docs_check.py

# Without build/: setuptools would pack files into the wheel that are no longer in the tree.
wheel: $(VENV)/dev
	@rm -rf build dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . >$(VENV)/wheel.log 2>&1 || { cat $(VENV)/wheel.log >&2; exit 1; }
	@rm -rf build $(VENV)/wheel.log
	@ls dist/*.whl

clean:
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/core: pyproject.toml constraints.txt $(UNFINISHED)
	$(call install,.,the planner: about a minute,core)

# kt-kernel has wheels for some platforms, and names another torch than ours though it works with it: hence --no-deps.
$(VENV)/dev: pyproject.toml constraints.txt $(UNFINISHED)
	$(call install,.[torch$(comma)plots$(comma)dev],planner$(comma) torch and tools: a few minutes,core dev)
	@$(PIP) --no-deps --only-binary :all: kt-kernel 2>/dev/null || echo 'no kt-kernel for this platform: its tests are skipped' >&2

comma := ,

# $(call install,what,said,stamps)
define install
	@if [ "$$(cat $(VENV)/whole 2>/dev/null)" != "$(CURDIR)" ] || ! $(BIN)/python -c '' 2>/dev/null; then \
	    for candidate in $(CANDIDATES); do \
	        "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	            && python="$$candidate" && break; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo 'moeplan needs Python 3.11 or newer with venv; none of these is: $(CANDIDATES).' >&2; \
	        echo 'Install it (Debian: apt install python3 python3-venv) or say where: make PYTHON=/path/to/python ...' >&2; \
	        exit 1; \
	    fi; \
	    "$$python" -m venv --clear $(VENV) || exit 1; \
	fi
	@echo 'installing into $(VENV) ($(2), once)' >&2
	@rm -f $(VENV)/whole $(VENV)/core $(VENV)/dev
	@$(PIP) setuptools
	@$(PIP) --no-build-isolation -e '$(1)'
	@touch $(addprefix $(VENV)/,$(3))
	@echo '$(CURDIR)' >$(VENV)/whole
endef
