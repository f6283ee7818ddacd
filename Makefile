# The commands for a clone of threadloom. `make` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.installed-bench
WRITERS := $(VENV)/.installed-docs

# Settings, given as in `make train STEPS=500`.
PYTHON ?=
PYTHONS = $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14 python)
CONFIG ?= nanogpt-tuned
TEXT ?= stdlib
STEPS ?=
ARGS ?=
# Each `make train` starts a new run: runs/stdlib-1, runs/stdlib-2, ...
NAME = $(basename $(notdir $(firstword $(TEXT))))
LAST = $(shell ls -d runs/$(NAME)-* 2>/dev/null | sed -n 's/^.*-\([0-9][0-9]*\)$$/\1/p' | sort -n | tail -1)
OUT ?= runs/$(NAME)-$(shell echo $$(( $(or $(LAST),0) + 1 )))
# `make resume` and `make sample` take RUN, or the newest run of all; config.json is written when a run starts or resumes.
RUN ?=
newest = $(shell ls -t runs/*/config.json 2>/dev/null | while IFS= read -r file; do \
	run=$${file%/config.json}; if compgen -G "$$run/$(1)" >/dev/null; then echo "$$run"; break; fi; done)
RESUMED = $(or $(RUN),$(call newest,config.json))
SAMPLED = $(or $(RUN),$(call newest,checkpoints/step-*))

# The first Python from 3.11 to 3.14 (the range that Numba has wheels for) that can create a virtual environment. A name
# on the PATH may not run (pyenv's shims), so each is tried.
define find_python
set -e; python=; \
for candidate in $(PYTHONS); do \
	if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; then \
		python=$$(command -v "$$candidate"); break; \
	fi; \
done; \
if [ -z "$$python" ]; then \
	echo "make setup: needs Python 3.11 to 3.14 with its venv module; none of these qualifies: $(PYTHONS)" >&2; \
	echo "Install one (on Debian and Ubuntu: apt-get install python3 python3-venv), or name one: make setup PYTHON=/path/to/python3.11" >&2; \
	exit 1; \
fi
endef

.PHONY: help
help: ## List the targets
	@echo "threadloom: train small GPT models on the CPU"
	@echo
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/\1\t\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F '\t' '{ printf "  make %-12s %s\n", $$1, $$2 }'
	@echo
	@echo "Settings: CONFIG=$(CONFIG) TEXT=$(TEXT) STEPS= OUT= RUN= ARGS='--set key=value ...' PYTHON="

.PHONY: setup
setup: $(INSTALLED) ## Create the virtual environment (.venv) and install everything into it

$(INSTALLED): pyproject.toml requirements.lock
	@$(find_python); \
	echo "setup: $$("$$python" -V) ($$python) -> $(VENV); installing dependencies, about a minute"; \
	"$$python" -m venv --clear $(VENV); \
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev]'; \
	touch $@; \
	echo "setup: done; '. $(BIN)/activate' puts the command threadloom on your PATH"

$(PEERS): $(INSTALLED)
	@echo "setup: installing the peers of the benchmarks (PyTorch, transformers, PEFT), lm-evaluation-harness"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev,bench,lm-eval]'
	@touch $@

$(WRITERS): $(INSTALLED)
	@echo "setup: installing what builds the documentation"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev,docs]'
	@touch $@

.PHONY: train
train: $(INSTALLED) ## Train a character-level GPT on the standard library's source (a few minutes)
	$(BIN)/threadloom train --config $(CONFIG) --text $(TEXT) --out $(OUT) $(if $(STEPS),--steps $(STEPS)) $(ARGS)

.PHONY: resume
resume: $(INSTALLED) ## Continue the newest run, or RUN, from its last checkpoint
	@test -n "$(RESUMED)" || { echo "make resume: no run in runs/; start one with make train, or name one: RUN=" >&2; exit 1; }
	$(BIN)/threadloom train --out $(RESUMED) --resume $(if $(STEPS),--steps $(STEPS)) $(ARGS)

.PHONY: sample
sample: $(INSTALLED) ## Generate text from the newest run that has a checkpoint, or from RUN
	@test -n "$(SAMPLED)" || { echo "make sample: no checkpoint in runs/; start a run with make train, or name one: RUN=" >&2; exit 1; }
	$(BIN)/threadloom sample $(SAMPLED) $(ARGS)

.PHONY: doctor
doctor: $(INSTALLED) ## Report on this machine and the choices that follow from it
	$(BIN)/threadloom doctor $(ARGS)

# Three processes on two cores: tests of commands wait for processes of their own, which leaves a quarter of two idle.
.PHONY: test
test: $(INSTALLED) ## Run the tests in three processes (minutes; ARGS='-n 0 -k name' selects some, in one)
	$(BIN)/python -m pytest -n 3 $(ARGS)

.PHONY: test-torch
test-torch: $(PEERS) ## Run the tests that compare with PyTorch, transformers and PEFT
	$(BIN)/python -m pytest -m torch $(ARGS)

.PHONY: targets
targets: $(INSTALLED) ## Compile every kernel for eight processors, and test those that this machine can run
	$(BIN)/python -m tests.targets $(ARGS)

.PHONY: field
field: $(INSTALLED) ## Run the cases from the field on an installed wheel: places, limits, texts, consoles, signals
	$(BIN)/python -m tests.field $(ARGS)

.PHONY: soak
soak: $(INSTALLED) ## Run the long tests
	$(BIN)/python -m pytest -m soak --timeout 1800 $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## Check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: $(INSTALLED) ## Fix the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: $(INSTALLED) ## Check the types
	$(BIN)/mypy

.PHONY: hooks
hooks: $(INSTALLED) ## Check style and types before each git commit
	$(BIN)/pre-commit install

.PHONY: docs
docs: $(WRITERS) ## Build the documentation into build/docs; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/docs

.PHONY: docs-serve
docs-serve: $(WRITERS) ## Serve the documentation on http://127.0.0.1:8000 and rebuild it on changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

.PHONY: bench
bench: $(PEERS) ## Throughput compared with PyTorch, as ratios of one run
	$(BIN)/python -m benchmarks.throughput $(ARGS)

.PHONY: convergence
convergence: $(INSTALLED) ## nanoGPT's CPU recipe at delay 0, 1 and 2: three curves in one picture
	$(BIN)/python -m benchmarks.convergence $(ARGS)

.PHONY: lock
lock: ## Update requirements.lock to the newest versions that pyproject.toml allows
	@$(find_python); \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	"$$python" -m venv "$$folder"; \
	"$$folder/bin/python" -m pip install -qq --disable-pip-version-check -e '.[dev,docs]'; \
	{ sed -n '/^#/p' requirements.lock; \
	  "$$folder/bin/python" -m pip freeze --all --exclude pip --exclude-editable | grep -v '^#'; } > "$$folder/lock"; \
	cp "$$folder/lock" requirements.lock; \
	echo "lock: $$(grep -c == requirements.lock) versions; run 'make setup test' before you commit it"

.PHONY: clean
clean: ## Remove the environment, caches and build outputs (runs stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
