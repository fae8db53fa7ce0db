# The few commands that everything starts from. `make` alone lists them.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
LAB := .venv/bin/lab
PYTEST := .ci/as-root .venv/bin/python -m pytest
PARTS := $(wildcard tests/unit tests/lint tests/bpf tests/lab)

# T chooses tests: a path (with a slash) or a -k expression. It reaches the shell by the environment, unquoted
# by nobody.
T ?=
export T
CHOSEN = $(if $(findstring /,$(T)),"$$T",$(PARTS) $(if $(T),-k "$$T"))

.PHONY: help
help: ## List these commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'

# VMS=1 asks for what virtual machines need on the host, too, and for all tests on them; VMS=core for those that a run
# of the whole suite has time for, which it does unless VMS=0 says otherwise.
VMS ?=
export UNDERPASS_VMS = $(VMS)
test: export UNDERPASS_VMS = $(or $(VMS),$(if $(T),,core))

.PHONY: setup
setup: ## Install what the host lacks, make .venv with the lab command
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 7))' || \
	    { echo "setup: $(PYTHON) is missing or too old; Python 3.11 or newer is needed" >&2; exit 4; }
	@.ci/phase setup $(PYTHON) -I lab/bootstrap.py

.PHONY: up
up: setup ## Bring the default lab up, or mend it
	@$(LAB) up

.PHONY: down
down: setup ## Remove the default lab; artifacts stay in the cache
	@$(LAB) down

.PHONY: test
test: setup ## Run the whole suite at CI size, or T=EXPRESSION or T=PATH of it
	@$(if $(T),,.ci/phase artifacts .ci/artifacts $(LAB))
	@$(if $(T),.ci/phase tests,.ci/suite) $(PYTEST) --durations=10 --durations-min=10 $(CHOSEN)

.PHONY: soak
soak: setup ## The same at full size, which takes hours: best with T=EXPRESSION or T=PATH
	@UNDERPASS_SIZE=full .ci/phase tests $(PYTEST) -o timeout=14400 --durations=10 $(CHOSEN)

.PHONY: lint
lint: setup ## Run the linters alone
	@.venv/bin/python -m pytest tests/lint

.PHONY: clean
clean: ## Remove .venv and what tools left in the checkout; labs and artifacts stay
	@rm -rf .venv *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
