# Everything that CI runs is a target here. `make` alone shows them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RIVALS := .venv/.rivals
ARGS ?=
STEPS ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help test demo bench bench-quick fuzz soak plugin install release lock check root lab clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lab check ## check, then run all tests; as root on Debian that installs what is missing (ARGS: to pytest)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

demo: root lab $(READY) ## show it at work on a private engine, which is gone afterwards
	@PYTHONPATH=tests:plugin $(BIN)/python tests/demo.py

bench: $(RIVALS) ## measure ours beside its rivals, for some ten minutes (see make bench ARGS=--help)
	@PYTHONPATH=tests:plugin $(BIN)/python -m bench $(ARGS)

bench-quick: $(RIVALS) ## the same with a tenth of the work, in less than 3 minutes
	@PYTHONPATH=tests:plugin $(BIN)/python -m bench --quick $(ARGS)

fuzz: root $(READY) ## 200,000 hostile requests against the real sidecar (see make fuzz ARGS=--help)
	@PYTHONPATH=tests $(BIN)/python -m fuzz $(ARGS)

soak: root $(READY) ## races for files for 90 s, then a million steps of the driver's life (ARGS='--seconds 600' STEPS=9)
	@PYTHONPATH=tests $(BIN)/python -m soak $(ARGS)
	@PYTHONPATH=tests:plugin $(BIN)/python -m life --steps $(STEPS)

plugin: $(READY) ## build the managed plugin and create it in this machine's engine (ARGS: see plugin/build.py)
	$(BIN)/python plugin/build.py $(ARGS)

install: $(READY) ## the same, and enable it (ARGS='--set ALLOWED_HOST_PATHS=/data')
	$(BIN)/python plugin/build.py --install $(ARGS)

release: $(READY) ## wheel, plugin and checksums in dist, the same bytes each time (ARGS: see plugin/release.py)
	$(BIN)/python plugin/release.py $(ARGS)

lock: $(READY) ## take the newest dependencies that pyproject.toml accepts into plugin/requirements.lock
	$(BIN)/pip-compile --quiet --upgrade --extra postgresql --generate-hashes --strip-extras --allow-unsafe \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-header --annotation-style line \
	    --output-file plugin/requirements.lock pyproject.toml

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

$(RIVALS): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@
