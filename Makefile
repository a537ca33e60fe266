# Everything happens in $(VENV), made on first use and pinned by constraints.txt.
# A stamp per set of installed things keeps later calls quick.

PYTHON ?= python3
VENV ?= .venv
DOMAIN ?= nlp
PLUGIN ?= core

# What `make demo DOMAIN=…` runs: a packaged recipe, with overrides that keep it short.
DEMO_RECIPE_nlp := nlp/sentiment
DEMO_ARGS_nlp := train.epochs=1
DEMO_RECIPE_vision := vision/classify
DEMO_ARGS_vision := report.scratch_control=false
DEMO_RECIPE_recsys := recsys/warm-start
DEMO_RECIPE_medical := medical/tumour-segmentation
DEMO_RECIPE_speech := speech/transcribe
DEMO_RECIPE ?= $(DEMO_RECIPE_$(DOMAIN))
DEMO_ARGS ?= $(DEMO_ARGS_$(DOMAIN))

PYTEST_ARGS ?=
KILLS ?= 200
BENCH ?= $(sort $(wildcard benchmarks/bench_*.py))
BENCH_ARGS ?=
PEERS ?= .venv-peers

BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PROJECTS := core $(sort $(patsubst %/pyproject.toml,%,$(wildcard plugins/*/pyproject.toml)))
TOOLS := build hypothesis import-linter mypy pytest pytest-xdist ruff
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt
# One thread in each of two processes: many tiny models run faster side by side.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

# The build backend is pinned too: pip builds in an environment of its own, which
# --constraint does not reach.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(CURDIR)/constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install test test-slow test-gpu test-network torture lint \
  format wheels alone bench bench-docs clean known-domain known-plugin

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' \
	  $(firstword $(MAKEFILE_LIST))
	@echo "  Projects: $(PROJECTS)"

demo: known-domain $(STAMPS)/demo-$(DOMAIN) ## Fine-tune a real model (DOMAIN=nlp); installs only what it needs
	$(BIN)/headstart run $(DEMO_RECIPE) $(DEMO_ARGS)

install: $(STAMPS)/all ## Install the core, every plugin and the tools into .venv

test: $(STAMPS)/all ## Run every test that needs no GPU, no network and no patience
	$(PYTEST) -m "not slow and not gpu and not peers and not network"

test-slow: $(STAMPS)/all ## Run the tests that take longer than half a minute
	$(PYTEST) -m "slow and not gpu and not peers and not network"

test-gpu: $(STAMPS)/all ## Run the tests that need a CUDA device
	$(PYTEST) -m "gpu"

test-network: $(STAMPS)/all ## Run the tests that fetch from a package index
	$(PYTEST) -m "network and not gpu and not peers"

torture: $(STAMPS)/all ## Kill training 200 times and resume it (KILLS=1000 for more)
	HEADSTART_KILLS=$(KILLS) $(PYTEST) -n 0 -s -m slow core/tests/test_torture.py

lint: $(STAMPS)/all ## Check style, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(STAMPS)/all ## Rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheels: $(STAMPS)/build ## Build the wheel of every project into dist/
	rm -rf dist
	set -e; for project in $(PROJECTS); do \
	  $(BIN)/python -m build --wheel --outdir dist $$project; done

alone: known-plugin $(STAMPS)/build ## Install one project alone in a clean environment and try it (PLUGIN=nlp, PLUGIN=core)
	$(BIN)/python tests/tools/alone.py $(PLUGIN)

bench: $(PEERS)/.stamps/peers ## Measure beside plain loops and peers (BENCH=one file, BENCH_ARGS=…)
	@test -n "$(strip $(BENCH))" || { echo "benchmarks/ has no bench_*.py" >&2; exit 1; }
	set -e; for script in $(BENCH); do $(PEERS)/bin/python $$script $(BENCH_ARGS); done

bench-docs: $(STAMPS)/venv ## Write docs/benchmarks.md from benchmarks/results/
	$(BIN)/python benchmarks/collect.py

clean: ## Remove the environment, wheels and caches (runs/ stays)
	rm -rf $(VENV) $(PEERS) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find core plugins tests -type d -name __pycache__ -prune -exec rm -rf {} +

known-domain:
	@test -f plugins/$(DOMAIN)/pyproject.toml || { \
	  echo "DOMAIN=$(DOMAIN) is not a plugin; there is: $(notdir $(filter plugins/%,$(PROJECTS)))" >&2; exit 2; }
	@test -n "$(DEMO_RECIPE)" || { \
	  echo "no demo recipe for $(DOMAIN): set DEMO_RECIPE_$(DOMAIN) in the Makefile" >&2; exit 2; }

known-plugin:
	@test "$(PLUGIN)" = core || test -f plugins/$(PLUGIN)/pyproject.toml || { \
	  echo "PLUGIN=$(PLUGIN) is unknown; there is: $(notdir $(PROJECTS))" >&2; exit 2; }

$(STAMPS)/venv:
	@set -e; found=; \
	for candidate in "$(PYTHON)" python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "headstart needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	  echo "Install Python 3.11 or 3.12, or name one: make PYTHON=/path/to/python3.12" >&2; \
	  exit 2; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version) ($$found)"; \
	"$$found" -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/demo-%: $(STAMPS)/venv constraints.txt core/pyproject.toml plugins/%/pyproject.toml
	$(INSTALL) -e ./core -e ./plugins/$*
	@touch $@

$(STAMPS)/build: $(STAMPS)/venv constraints.txt
	$(INSTALL) build
	@touch $@

$(PEERS)/.stamps/peers: benchmarks/peers.txt constraints.txt core/pyproject.toml plugins/nlp/pyproject.toml plugins/vision/pyproject.toml
	$(MAKE) VENV=$(PEERS) $(PEERS)/.stamps/venv
	$(PEERS)/bin/python -m pip install --constraint constraints.txt \
	  --requirement benchmarks/peers.txt -e ./core -e ./plugins/nlp -e ./plugins/vision
	@touch $@

$(STAMPS)/all: $(STAMPS)/venv constraints.txt $(PROJECTS:%=%/pyproject.toml)
	$(INSTALL) $(TOOLS) $(PROJECTS:%=-e './%[test]')
	@touch $@
