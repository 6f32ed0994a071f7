# Needs only Python 3.11+, make and a package index: uv is put into the clone when it is missing.
.DEFAULT_GOAL := help
.PHONY: help setup digits test check readme

UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
STAMP := .venv/.synced
# DVC runs stages by name and each starts Python anew: the environment comes first on the path.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH"
# In several processes, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(RUN) python -m pytest -n auto --maxprocesses 4 --dist loadfile

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(STAMP) ## Make the environment in .venv from uv.lock

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/python -m pip install --quiet uv \
		|| python3 -m pip install --quiet --target .uv uv

$(STAMP): pyproject.toml uv.lock | $(filter .uv/bin/uv,$(UV))
	$(UV) sync --locked --all-extras --compile-bytecode --quiet
	@touch $@

digits: $(STAMP) ## Run the whole pipeline on the embedded data set and print its table
# DVC runs one stage after the other: trained two at a time beforehand, its stages find their records.
	@test -f pipelines/digits/dvc.lock || $(RUN) capsrepro submit digits --devices cpu --per-device 2
	@$(RUN) dvc repro pipelines/digits/dvc.yaml
	@echo; $(RUN) capsrepro report digits

test: $(STAMP) ## Run the test suite
	@$(PYTEST)

check: $(STAMP) ## Format, lint, types, import contracts, README tables, fast tests
	@$(RUN) ruff format --check
	@$(RUN) ruff check
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) capsrepro report --check >/dev/null
	@$(PYTEST) -m "not slow" -q

readme: $(STAMP) ## Bring tables and README.md up to date with the records
	@$(RUN) capsrepro report --write --readme >/dev/null
