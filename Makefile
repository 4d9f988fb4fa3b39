# `make demo` and `make test` need only a Python of at least 3.11 (choose one with PYTHON=...); they do all the set-up.
# What is installed in .venv is recorded by the stamp files, so that a second run starts at once.

SHELL := /bin/bash
BIN := .venv/bin

.PHONY: help demo test quick lint format laws fuzz soak soak-clocks soak-faults bench clean

help:
	@echo "make demo    three programs and one budget, without and with Ratekeeper (under two minutes)"
	@echo "make test    everything CI checks: lint, types, import layers, all tests"
	@echo "make quick   the unit tests and the laws, in a minute and a half"
	@echo "make lint    only the checks that run nothing;  make format  mends what ruff can"
	@echo "make laws    the laws in ten thousand random worlds (WORLDS=... for another number)"
	@echo "make fuzz    random answers, messages and records for an hour (SECONDS=... for another time)"
	@echo "make soak    three programs on real minutes (ARGS=MINUTES, else three)"
	@echo "make soak-faults  everything at once on a bad network: does anything leak? (ARGS=MINUTES, else thirty)"
	@echo "make soak-clocks  the same while Date is wrong, near and far, with and without counters (ARGS='--minutes N')"
	@echo "make bench   the benchmarks; rewrites docs/reference/benchmarks.md"
	@echo "make clean   removes .venv and all caches"

.venv/%.stamp: pyproject.toml tools/setup
	@tools/setup $* >&2

demo: .venv/demo.stamp
	@$(BIN)/ratekeeper demo $(ARGS)

test: lint
	@tools/suite $(ARGS)

quick: .venv/test.stamp
	@tools/suite --quick $(ARGS)

lint: .venv/test.stamp
	@echo "ruff";         $(BIN)/ruff check --quiet .
	@echo "ruff format";  $(BIN)/ruff format --quiet --diff .
	@echo "mypy";         $(BIN)/mypy --no-error-summary
	@echo "import layers"; out=$$($(BIN)/lint-imports --no-cache) || { echo "$$out"; exit 1; }

format: .venv/test.stamp
	@$(BIN)/ruff check --fix-only --quiet . ; $(BIN)/ruff format .

laws: .venv/test.stamp
	$(BIN)/python -m tests.laws.long_run $(or $(WORLDS),10000)

fuzz: .venv/test.stamp
	$(BIN)/python -m tests.fuzz.long_run $(or $(SECONDS),3600)

soak: .venv/test.stamp
	@$(BIN)/python -m benchmarks.soak $(ARGS)

soak-faults: .venv/test.stamp
	@$(BIN)/python -m benchmarks.soak_faults $(if $(ARGS),--minutes $(ARGS))

soak-clocks: .venv/test.stamp
	@$(BIN)/python -m benchmarks.soak_clocks $(ARGS)

bench: .venv/bench.stamp
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
