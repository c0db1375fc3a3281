# Everything that CI runs is a target here. `make` alone shows them.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RIVALS := .venv/.rivals
SITE := .venv/.site
ARGS ?=
STEPS ?= 1000000

.DEFAULT_GOAL := help
.PHONY: help test demo pictures docs bench bench-quick plots fuzz soak plugin install release lock check root tools lab clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

test: lab check docs ## check, then run all tests; as root on Debian that installs what is missing (ARGS: to pytest)
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

demo: root tools $(READY) ## show it at work on a private engine, which is gone afterwards
	@PYTHONPATH=tests:plugin $(BIN)/python tests/demo.py

pictures: root lab $(READY) ## draw docs/pictures anew, each from a real run
	$(BIN)/python docs/pictures/draw.py
	@PYTHONPATH=tests:plugin $(BIN)/python tests/pictures.py

docs: $(SITE) ## make the site of docs/ in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: $(RIVALS) ## measure ours beside its rivals, for some ten minutes (see make bench ARGS=--help)
	@PYTHONPATH=tests:plugin $(BIN)/python -m bench $(ARGS)

bench-quick: $(RIVALS) ## the same with a tenth of the work, twice instead of three times
	@PYTHONPATH=tests:plugin $(BIN)/python -m bench --quick $(ARGS)

plots: $(READY) ## draw docs/pictures/growth-*.svg anew, of the last make bench
	@PYTHONPATH=tests $(BIN)/python -m bench.plot build/bench.json docs/pictures

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

tools: ## install what building the plugin and the demo need (root, apt-get)
	@$(PYTHON) tests/lab/prerequisites.py tools

lab: ## install what the tests need (root, apt-get)
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

$(SITE): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
