# make env && source .venv/bin/activate, and the commands are there.
PYTHON := .venv/bin/python
ARGS ?=

.PHONY: help env demo test lint bench wheel test-current-dials clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | \
		awk -F'|' '{ printf "%-26s %s\n", $$1, $$2 }'

env: ## make .venv, with DIALS, torch and the commands (see scripts/bootstrap.sh)
	@scripts/bootstrap.sh

demo: env ## refine an example
	@PATH="$(CURDIR)/.venv/bin:$$PATH" scripts/demo.sh $(ARGS)

test: env lint ## run the checks and tests (ARGS="-k name" for some of them)
	@$(PYTHON) -m pytest tests -q --numprocesses auto --dist worksteal $(ARGS)

lint: .venv/bin/ruff ## check the style of the code
	@.venv/bin/ruff check --quiet . && .venv/bin/ruff format --check .

# The version is the one that pyproject.toml fixes, since each formats its own way.
.venv/bin/ruff: pyproject.toml | env
	@$(PYTHON) -m pip install -qq \
		"$$(sed -n 's/.*"\(ruff==[0-9.]*\)".*/\1/p' pyproject.toml)" && touch $@

bench: env ## run the benchmarks
	@$(PYTHON) -m benchmarks $(ARGS)

wheel: env ## build a wheel in dist/
	@rm -rf build # setuptools would ship what an older build left there
	@$(PYTHON) -m pip wheel -qq --no-deps --wheel-dir dist .
	@rm -rf build && ls dist/*.whl

test-current-dials: ## run the tests with Debian sid's DIALS, in a chroot (needs root)
	@scripts/current_dials.sh $(ARGS)

clean: ## remove what builds and tests left (not .venv)
	@rm -rf build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
