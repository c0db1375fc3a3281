# Everything that CI runs is a target here. `make` alone shows them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help test demo plugin install check root lab clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lab check ## check, then run all tests; as root on Debian that installs what is missing (ARGS: to pytest)
	$(BIN)/pytest $(ARGS)

demo: root lab $(READY) ## show it at work on a private engine, which is gone afterwards
	@PYTHONPATH=tests:plugin $(BIN)/python tests/demo.py

plugin: $(READY) ## build the managed plugin and create it in this machine's engine (ARGS: see plugin/build.py)
	$(BIN)/python plugin/build.py $(ARGS)

install: $(READY) ## the same, and enable it (ARGS='--set ALLOWED_HOST_PATHS=/data')
	$(BIN)/python plugin/build.py --install $(ARGS)

check: $(READY) ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

root:
	@$(PYTHON) tests/lab/prerequisites.py root

lab: ## install what the system tests and the demo need (root, apt-get)
	@$(PYTHON) tests/lab/prerequisites.py

clean: ## remove what was built and cached
	rm -rf --one-file-system build dist .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml
	@$(PYTHON) tests/lab/prerequisites.py venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
