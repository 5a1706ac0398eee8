# Every target sets itself up: the first one called makes the virtual environment.
#   make demo [OUT=runs/demo]     make test [MARKS="not slow"]     make PYTHON=python3.12 ...

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo
MARKS ?= not slow

BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test lint format clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

demo: $(READY) ## pretrain and compare on images that need no download, results in OUT
	$(BIN)/mpp demo $(OUT)

test: lint ## lint, then the tests; MARKS= runs the slow ones too
	$(BIN)/python -m pytest -m "$(MARKS)"

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict mpp

format: $(READY) ## let ruff rewrite the files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("mpp needs Python 3.11 or newer, $(PYTHON) is %d.%d; fix: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the rest: 6 GB on disk, some minutes"
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $@
