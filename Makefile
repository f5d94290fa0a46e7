# The whole interface: `make serve` runs the gateway, `make test` and `make check` are what CI runs.
# Everything is installed into .venv from the lock files; a file there remembers which lock it has, so a second run installs nothing.

.DEFAULT_GOAL := help
.PHONY: help serve test test-clients check lint types contracts shape secrets documents format lock local bench clean
.NOTPARALLEL:
BIN := .venv/bin
# Processes that tests are shared out among, a file to one of them: most tests wait for others more than they compute.
WORKERS ?= 3

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

serve: .venv/has-run .venv/has-local ## run the gateway (ARGS="..." for options of `hortator serve`)
	@exec $(BIN)/hortator serve $(ARGS)

test: .venv/has-dev .venv/has-local ## run all tests, with real Postgres, Redis and model (ARGS="tests/wire -k sse")
	@$(BIN)/hortator models pull qwen2.5-coder-0.5b || echo "make: no embedded model; its tests are skipped"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-clients: .venv/has-dev ## try published clients and coding agents against the gateway (ARGS="-k aider")
	@scripts/clients
	$(BIN)/python -m pytest tests/clients $(ARGS)

check: lint types contracts shape secrets documents ## run all checks that need no server (`make -k check` shows all failures)

lint: .venv/has-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/has-dev
	$(BIN)/mypy

contracts: .venv/has-dev
	$(BIN)/lint-imports --no-logo

shape: .venv/has-dev
	$(BIN)/python scripts/shape.py hortator tests scripts bench

secrets: .venv/has-dev
	$(BIN)/python scripts/secret_scan.py

documents: .venv/has-dev
	$(BIN)/python scripts/openapi.py --check
	$(BIN)/python scripts/configuration_page.py --check

format: .venv/has-dev ## format the code, mend what can be mended, rewrite the generated documents
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/python scripts/openapi.py
	$(BIN)/python scripts/configuration_page.py

lock: .venv/has-dev ## write the lock files from pyproject.toml (ARGS=--upgrade takes the newest versions)
	scripts/lock $(ARGS)

local: ## try again to install the embedded model's engine
	@rm -f .venv/has-local
	@$(MAKE) --no-print-directory .venv/has-local

bench: .venv/has-run ## measure against other gateways (ARGS="--help" for options)
	$(BIN)/python bench/run.py $(ARGS)

clean: ## remove the environment and everything that was built; data in HORTATOR_HOME stays
	rm -rf .venv .clients build dist bench/out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/has-run: requirements.lock pyproject.toml scripts/setup
	@scripts/setup run
	@touch $@

.venv/has-dev: requirements-dev.lock pyproject.toml scripts/setup
	@scripts/setup dev
	@touch $@ .venv/has-run

.venv/has-local: requirements-local.lock scripts/setup | .venv/has-run
	@scripts/setup local
	@touch $@
