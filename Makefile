# `make demo`: set up everything and run the main job on a real checkpoint.
# `make test`: set up everything and run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint docs clean

demo: $(VENV)/demo.installed
	$(BIN)/boom compile
	$(BIN)/python recipes/quickstart/base.py demo/base
	$(BIN)/boom-train recipes/quickstart/plan.yaml
	$(BIN)/boom-merge recipes/quickstart.yaml --overwrite
	$(BIN)/python recipes/quickstart/compare.py demo

test: $(VENV)/test.installed
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/test.installed $(VENV)/lint.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/test.installed
	$(BIN)/python -m mergekit_embed.recipe.reference docs/recipe.md
	$(BIN)/python -m mergekit_embed.train.reference docs/training.md
	$(BIN)/python -m mergekit_embed.search.reference docs/search.md

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.installed: setup.cfg pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[$*]'
	@touch $@
