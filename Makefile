# `make demo` and `make test` need Python >= 3.11 and a package index, nothing else.

PYTHON ?= python3
VENV ?= .venv
# A pip requirement that chooses the Django version, such as "Django~=5.2.0".
DJANGO ?= Django>=5.2
# SERVE=0 ends the demo after its table; DATA=path plays your own conversations.
SERVE ?= 1
DATA ?=
# dev, tenth, full or long: see tests/support/scale.py.
HYPOTHESIS_PROFILE ?= tenth
# One more than cores: tests wait for locks, servers and other processes as well.
PYTEST_ARGS ?= -n 3 --dist worksteal
# What `make bench` passes on: a workload, rounds, your own conversations.
BENCH ?=
# MEASURE=1 measures the coverage, and is slower.
MEASURE ?= 0

# A stamp's name holds what the environment was made from: another Python or Django makes another.
KEY := $(shell printf '%s' '$(PYTHON) $(DJANGO)' | cksum | cut -d' ' -f1)
DEMO := $(VENV)/demo-$(KEY)
DEV := $(VENV)/dev-$(KEY)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COVERAGE = $(if $(filter 1,$(MEASURE)),-m coverage run --data-file=.coverage.$(1))
# Data of an earlier run would count lines that this one never reached.
FORGET = $(if $(filter 1,$(MEASURE)),rm -f .coverage.$(1) .coverage.$(1).*)
# Where nothing may be cached, every worker compiles every test anew, which takes it six seconds.
PYTEST = PYTHONDONTWRITEBYTECODE= TEST_DATABASE=$(1) $(BIN)/python $(COVERAGE) -m pytest $(PYTEST_ARGS)

export HYPOTHESIS_PROFILE

.NOTPARALLEL:
.PHONY: bench demo environment test test-full test-sqlite test-postgresql test-long
.PHONY: lint format types contracts migrations host coverage clean

demo: $(DEMO)
	$(BIN)/python manage.py demo $(if $(filter 0,$(SERVE)),--no-serve,--serve) $(if $(DATA),--data "$(DATA)")

# PostgreSQL comes from PyPI where DATABASE_URL names none; all is dropped afterwards.
bench: $(DEV)
	$(BIN)/python manage.py bench --database postgresql $(if $(DATA),--data "$(DATA)") $(BENCH)
	$(BIN)/python manage.py bench --database sqlite $(if $(DATA),--data "$(DATA)") $(BENCH)

environment: $(DEV)

# Both databases, also when the first one fails.
test: $(DEV)
	@$(MAKE) --no-print-directory --keep-going test-sqlite test-postgresql

test-sqlite: $(DEV)
	@$(call FORGET,sqlite)
	$(call PYTEST,sqlite)

test-postgresql: $(DEV)
	@$(call FORGET,postgresql)
	$(call PYTEST,postgresql)

# Every random example, fault, process and step of the machine: `make test` tries a tenth of them.
test-full: $(DEV)
	@$(MAKE) --no-print-directory test HYPOTHESIS_PROFILE=full

test-long: $(DEV)
	@$(MAKE) --no-print-directory test HYPOTHESIS_PROFILE=long

lint: $(DEV)
	$(BIN)/ruff check .

format: $(DEV)
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

contracts: $(DEV)
	$(BIN)/lint-imports

migrations: $(DEV)
	$(BIN)/python manage.py makemigrations --check --dry-run

host: $(DEV)
	$(BIN)/python tests/host/run.py

# After `make test MEASURE=1`: what the runs on both databases reached together.
coverage: $(DEV)
	$(BIN)/coverage combine --keep --quiet
	$(BIN)/coverage report --fail-under=90
	$(BIN)/coverage report --fail-under=100 --include="conversations/storage/*,conversations/routing/truth.py,conversations/content/codec.py,conversations/content/field_codec.py,conversations/stores/*"

clean:
	rm -rf $(VENV) .coverage .coverage.* build dist db.sqlite3*

$(DEMO): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) --editable ".[demo]" "$(DJANGO)"
	@touch $@

$(DEV): $(DEMO)
	$(PIP) --editable ".[dev]" "$(DJANGO)"
	@touch $@
