# Every target that needs Python builds .venv first and reuses it while it is current.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## run the bundled model, write runs/demo, and compare two bridges
	$(BIN)/python -m blip3o.demo --output_dir runs/demo $(ARGS)
	$(BIN)/blip3o ablate experiments/ablations/quick.yaml --output_dir runs/ablations/quick --jobs 2

test: $(STAMP) ## run the fast tests (ARGS="-m slow" for the slow ones)
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy blip3o

format: $(STAMP) ## format the code and fix what ruff can fix
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove caches and build output; keeps .venv and runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find blip3o tests -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	suitable() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	start=$$(date +%s); \
	if ! suitable $(BIN)/python || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=; \
		for candidate in $(PYTHON) python3.11 python3; do \
			if suitable "$$candidate"; then python="$$candidate"; break; fi; \
		done; \
		if [ -z "$$python" ]; then \
			echo "Python 3.11 or newer was not found; install it or name one: make PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $$python"; \
		"$$python" -m venv --clear $(VENV); \
	fi; \
	echo "Installing the pinned packages into $(VENV); the first time takes some minutes"; \
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"; \
	touch $(STAMP); \
	echo "Installation took $$(( $$(date +%s) - start )) s"
