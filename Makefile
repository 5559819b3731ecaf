# The same commands for a person and for CI. `make demo` or `make test` alone set up all they need.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3.11

.PHONY: help setup demo test check bench faults flower clean
help:
	@echo "make demo    set up, start the servers and workers, load the sample data, ask questions"
	@echo "make test    set up, check, run all tests on real servers of their own"
	@echo "make bench   round trip, throughput, logs and the ledger beside their peers, on the local stack"
	@echo "make faults  kills and restarts under load, each many times, and what they cost (about 40 minutes)"
	@echo "make flower  Flower on the local stack, on http://127.0.0.1:5555"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make setup   install what is missing: Debian packages, the virtual environment, a mongod"
	@echo "make clean   stop the stack and delete it, the environment and all caches"

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml tools/setup.sh
	PYTHON=$(PYTHON) sh tools/setup.sh $(VENV)
	touch $@

demo: setup
	$(BIN)/beds demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/pytest

bench: setup
	$(BIN)/python -m bench.rpc
	$(BIN)/python -m bench.logs
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.scaling

faults: setup
	$(BIN)/python -m tests.faults.storm

flower: setup
	eval "$$($(BIN)/beds stack env)" && $(BIN)/celery -A beds flower --address=127.0.0.1

clean:
	test ! -x $(BIN)/beds || $(BIN)/beds stack down --wipe
	rm -rf $(VENV) .beds .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build dist
