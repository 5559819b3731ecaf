# The same commands for a person and for CI. `make demo` or `make test` alone set up all they need.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3.11

.PHONY: help setup demo http test check docs bench bench-quick faults kills cluster flower clean
help:
	@echo "make demo    set up, start the servers and workers, load the sample data, ask questions"
	@echo "make http    the app server and its page on the local stack, and a key for them"
	@echo "make test    set up, check, run all tests on real servers of their own"
	@echo "make bench   operations, logs, the ledger and dead events beside their peers, on the local stack"
	@echo "make bench-quick  operations beside their peers, with fewer calls (about three minutes)"
	@echo "make faults  kills and restarts under load, each many times, and what they cost (about 40 minutes)"
	@echo "make kills   the storms of many kills that CI runs beside the tests (about 3 minutes)"
	@echo "make cluster clusters of each server, whose leaders are killed or replaced under load (about 20 minutes)"
	@echo "make flower  Flower on the local stack, on http://127.0.0.1:5555"
	@echo "make check   ruff, mypy, import-linter"
	@echo "make docs    the documentation as a site, in build/site; a broken link fails"
	@echo "make setup   install what is missing: Debian packages, the virtual environment, a mongod"
	@echo "make clean   stop the stack and delete it, the environment and all caches"

setup: $(VENV)/.complete

$(VENV)/.complete: pyproject.toml tools/setup.sh
	PYTHON=$(PYTHON) sh tools/setup.sh $(VENV)
	touch $@

demo: setup
	$(BIN)/beds demo

http: setup
	$(BIN)/beds up

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# In two processes, each with servers of its own: most of a test is waiting. A file stays in one process.
test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -d build/doctrees -c docs . build/site
	@echo "build/site/index.html"

bench: setup
	$(BIN)/python -m bench.operations
	$(BIN)/python -m bench.logs
	$(BIN)/python -m bench.ledger
	$(BIN)/python -m bench.dead
	$(BIN)/python -m bench.scaling
	$(BIN)/python -m bench.http
	$(BIN)/python -m bench.imports

bench-quick: setup
	$(BIN)/python -m bench.operations --quick

faults: kills
	$(BIN)/python -m tests.faults.storm

kills: setup
	$(BIN)/pytest -m long tests/faults

cluster: setup
	$(BIN)/pytest -s -m "" tests/cluster

flower: setup
	eval "$$($(BIN)/beds stack env)" && $(BIN)/celery -A beds flower --address=127.0.0.1

clean:
	test ! -x $(BIN)/beds || $(BIN)/beds stack down --wipe
	rm -rf $(VENV) .beds .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info build dist
