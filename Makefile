# NotiPy for developers. `make` alone lists what there is.
PYTHON ?= python3
PYTEST_FLAGS ?= -n 2

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo run test chaos lint lock bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with everything that development needs

demo: $(STAMP) ## start everything, send the sample events, show what became of them
	@exec $(BIN)/notipy demo

run: $(STAMP) ## start everything and stay in the foreground until Ctrl-C
	@exec $(BIN)/notipy run --embedded

test: $(STAMP) ## run the whole test suite against real servers
	@exec $(BIN)/python -m pytest $(PYTEST_FLAGS)

chaos: $(STAMP) ## run NotiPy under load and inject every fault, three times each (CHAOS_FLAGS="--list")
	@exec $(BIN)/python -m tests.chaos $(CHAOS_FLAGS)

lint: $(STAMP) ## check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(STAMP) ## write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra embedded --extra dev --extra ses --extra apns --extra apprise --extra mjml --extra dkim --python-version 3.11 --universal \
		--generate-hashes -q -o requirements.lock

bench: $(STAMP) ## measure it beside its peers (BENCH_FLAGS="--quick")
	@exec $(BIN)/python -m benchmarks $(BENCH_FLAGS)

clean: ## remove what make, the servers and the tools have created
	rm -rf .venv .notipy build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Made anew when what is installed no longer matches what is asked for.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "NotiPy needs Python 3.11 or newer; choose one with: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv || { rm -rf .venv; \
		echo "On Debian and Ubuntu this needs a package: sudo apt-get install -y python3-venv"; exit 1; }
	@echo "Installing into .venv: a minute, the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
