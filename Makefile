# The commands of a checkout. Each creates or reuses .venv by itself; `make help` lists them.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
ARGS ?=

# A worker a core, up to four: each holds about 1.2 GB. With one thread each they do not fight for cores; ARGS="-n 0" is
# one process, to which OMP_NUM_THREADS=2 gives two threads.
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations=20

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint types format bench docs clean

help: ## Say what each target does
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "make %-9s %s\n", $$1, $$2}'

demo: $(INSTALLED) ## Compare two orders of prediction with both token types; prints the table, writes the page
	@$(BIN)/arvid demo $(ARGS)

test: $(INSTALLED) ## Run the tests (all but those marked slow; no network needed)
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(INSTALLED) ## Run every test
	@$(PYTEST) $(ARGS)

lint: $(INSTALLED) types ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED) ## Check types
	@$(BIN)/mypy

format: $(INSTALLED) ## Rewrite the code in the house's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(INSTALLED) ## Run a benchmark by name: make bench NAME=demo ARGS="--scale smoke"
	@$(BIN)/arvid bench $(NAME) $(ARGS)

docs: $(INSTALLED) ## Build the docs site into site/; a broken link is an error
	@$(BIN)/python -c "import mkdocs" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@$(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html."

clean: ## Remove caches and build outputs (not .venv, not runs/)
	@rm -rf dist site .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "arvid needs Python 3.11 or later; name one by: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "could not create .venv (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing arvid and its dependencies into .venv (about 1.5 minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
