# `make demo` and `make test` do all their own set-up; nothing but Python (3.11 or newer) and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# Tests run in as many processes as there are cores, up to four; those that start a server take a free port.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format bench comparison docs clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make the virtual environment, install everything and fetch the bundled model

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("steersman needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps repeng steering-vectors
	$(BIN)/steersman models pull
	@touch $@

demo: setup ## One sentence in: steer the bundled model to speak to children, prove it, and let it answer (about two minutes)
	@test -f children/recipe.json || $(BIN)/steersman autosteer "Explain things in a way that children can understand." --out children || [ $$? -eq 3 ]
	@$(BIN)/python examples/childrens_qa.py --compare

test: setup ## Run the tests (a few minutes on two cores)
	$(PYTEST) -m "not slow"

test-all: setup ## Run the tests and the longer proofs
	$(PYTEST)

check: setup ## Formatting, lint, types, and that the docs are fresh
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## Measure the engine beside transformers, repeng and steering-vectors (about ten minutes, on a quiet machine)
	$(BIN)/python bench/engine.py

comparison: setup ## Compare the steering methods and write docs/comparison.md and the README's table anew (hours; goes on where it ended)
	$(BIN)/python bench/methods.py --report docs/comparison.md --readme

docs: setup ## Write the generated parts of the documentation anew
	$(BIN)/python docs/generate.py

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
