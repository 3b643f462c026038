# `make` lists the targets. PYTHON is what the virtual environment is made with (3.11 or 3.12).
PYTHON ?= python3
VENV ?= .venv
# Where CPU builds of torch are, for indexes whose plain torch is a CUDA build (see requirements/cpu.txt).
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps -q
STAMP = $(VENV)/.installed

.PHONY: help venv demo test lint format clean cluster-packages

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

venv: $(STAMP) ## make .venv with everything pinned in requirements/ (3 GB, under 2 minutes)

$(STAMP): requirements/cpu.txt requirements/dev.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
		echo "megarlhf needs Python 3.11 or 3.12, which $(PYTHON) is not: try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --timeout 60 --retries 1 --extra-index-url $(TORCH_INDEX) `grep '^torch==' requirements/cpu.txt`
	$(INSTALL) -r requirements/cpu.txt -r requirements/dev.txt
	$(INSTALL) --no-build-isolation -e .
	@$(VENV)/bin/python -c 'import torch' || { \
		echo "torch does not import: is it a CUDA build? Set TORCH_INDEX to an index of CPU builds" >&2; exit 1; }
	@touch $@

demo: venv ## align a tiny model from start to end on this machine
	$(VENV)/bin/megarlhf demo

# Tests that start whole RL runs wait more than they compute: the others, which take about as long, run beside them. (Not the
# other way round: a shell ignores SIGINT in what it runs in the background, and with it all that is started there.)
RUNS = $(wildcard tests/end_to_end/test_rl*.py) $(addprefix tests/end_to_end/,test_generate.py test_ppo.py)
test: lint ## lint, then every test that this machine can run
	@$(VENV)/bin/python -m pytest -q tests $(RUNS:%=--ignore=%) > .test-others.log 2>&1 & others=$$!; \
	$(VENV)/bin/python -m pytest -q $(RUNS); runs=$$?; \
	wait $$others; others=$$?; cat .test-others.log; exit $$((runs || others))

lint: venv ## check style and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

cluster-packages: ## install Debian's Slurm, munge, iproute2 and shellcheck, for the tests of launch/ (root)
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends slurm-wlm munge iproute2 shellcheck

format: venv ## rewrite files to the project's style
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove build products and caches, not .venv or runs/
	rm -rf build dist *.egg-info .pytest_cache tests/.pytest_cache .ruff_cache .hypothesis
	find . -path './.?*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
