# Every target sets up .venv by itself; the second time that costs nothing.
# Needed: Python 3.11 or newer (make PYTHON=python3.12 …) and a package index.
# Extra arguments for pytest: make test ARGS="-k journal -x"
# The tests run in as many processes as there are cores; those chosen by -k or :: in one, and all
# with ARGS="-n 0", for a debugger or to read what they print as it comes.
# The tests start a Postgres of their own; DURABLETASK_TEST_POSTGRES=<dsn of a superuser> names
# another one, DURABLETASK_POSTGRES_BIN=<folder> other programs, and with
# DURABLETASK_TEST_PGBOUNCER=<program> the tests of poolers run with the real one too.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin/python
READY := .venv/.ready
# Each worker begins with neighbours, whose fixtures are started once, and takes over half of what
# is left to another one when it has nothing more to do.
PYTEST := $(BIN) -m pytest -n logical --dist worksteal

.PHONY: help demo test check bench bench-dbos soak clean

help:
	@echo 'make demo    1,000 transfers, killed again and again, reconciled to the cent'
	@echo 'make test    all tests but the soak'
	@echo 'make check   format, lint, types, tests, then the tests against the built wheel'
	@echo 'make bench   the benchmarks, one after the other'
	@echo 'make bench-dbos  ours beside DBOS on the same Postgres; installs it below build/'
	@echo 'make soak    the long runs'
	@echo 'make clean   remove what these targets made'

demo: $(READY)
	@$(BIN) -m samples.demo

test: $(READY)
	$(PYTEST) -m 'not soak' $(ARGS)

check: $(READY)
	$(BIN) -m ruff format --check .
	$(BIN) -m ruff check .
	$(BIN) -m mypy
	$(PYTEST) -m 'not soak' $(ARGS)
	.ci/installed $(PYTHON) $(ARGS)

bench: $(READY)
	$(BIN) -m benchmarks $(ARGS)

bench-dbos: $(READY)
	$(BIN) -m benchmarks.dbos $(ARGS)

soak: $(READY)
	$(BIN) -m pytest -m soak $(ARGS)

clean:
	rm -rf .venv dist build demo-state .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last, so that an interrupted set-up is done again. --group needs pip 25.1.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN) -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN) -m pip install --quiet --group dev --editable .
	@touch $@
