# Entry points. Each target first sets up what it needs, once, in .venv; `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STORE := store/brain64
PHOTOS := store/photos64

# One test process per core, at most 8; a file's tests stay together, since they share what they made.
WORKERS := -n auto --maxprocesses=8 --dist loadfile

# The exact versions of constraints.txt were frozen on this Python; others resolve requirements.txt freely.
FROZEN_ON := 3.11

.PHONY: help setup demo demo-images test test-slow lint docs bench clean store photos

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev  ## install everything into .venv (the other targets do so on their own)

demo: store  ## train on undersampled brain scans, reconstruct another person's, write a report
	$(PY) main.py --config=configs/brain64_msm.py:demo --workdir=workdir/demo --mode=train
	$(PY) main.py --config=configs/brain64_msm.py:demo --workdir=workdir/demo --mode=eval
	$(PY) main.py --config=configs/brain64_msm.py --workdir=workdir/demo_pretrained --mode=eval \
	  --config.eval.checkpoint=pretrained/brain64_msm
	@echo "trained here:        workdir/demo/eval/report.html"
	@echo "pretrained, shipped: workdir/demo_pretrained/eval/report.html"

demo-images: photos  ## train on masked photographs, fill in others, write a report
	$(PY) main.py --config=configs/photos64_msm.py:demo --workdir=workdir/demo_images --mode=train
	$(PY) main.py --config=configs/photos64_msm.py:demo --workdir=workdir/demo_images --mode=eval \
	  --config.eval.max_examples=24
	@echo "report: workdir/demo_images/eval/report.html"

test: $(VENV)/.dev  ## run the tests of units, theory and conformance, and short runs
	$(PY) -m pytest -q $(WORKERS) -m "not slow"

test-slow: $(VENV)/.dev  ## run the tests that kill, use several devices or processes, or make whole runs
	$(PY) -m pytest -q $(WORKERS) -m slow

lint: $(VENV)/.dev  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	mkdir -p build/types && ln -sfn ../.. build/types/msm  # pyright follows folders, not editable installs
	$(PY) -m pyright

docs: $(VENV)/.docs  ## build the pages of docs/ as a site in build/site; a broken link fails
	mkdir -p build/types && ln -sfn ../.. build/types/msm
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/python -m mkdocs build --strict --quiet
	@echo "site: build/site/index.html"

bench: store photos  ## time training and reconstruction
	$(PY) benchmarks/bench.py
	$(PY) benchmarks/host_input.py

clean:  ## delete what demos and test made: stores, demo workdirs, caches (.venv stays)
	rm -rf $(STORE) $(PHOTOS) workdir/demo workdir/demo_pretrained workdir/demo_images .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Does nothing where the store is complete and of these settings.
store: $(VENV)/.run
	$(PY) tools/prepare_demo.py --size 64 --out $(STORE)

photos: $(VENV)/.run
	$(PY) tools/prepare_images.py --photos --size 64 --out $(PHOTOS)

# Installs the package with extras $(1) from this folder and leaves stamp $(2).
define install
	@echo 'installing msm$(1) into $(VENV) (about 1 GB, once)'
	@constraints=$$($(PY) -c 'import sys; print("-c constraints.txt" if "%d.%d" % sys.version_info[:2] == "$(FROZEN_ON)" else "")'); \
	$(PY) -m pip install --quiet --disable-pip-version-check --editable .$(1) $$constraints
	touch $(2)
endef

$(VENV)/.run: pyproject.toml requirements.txt constraints.txt | $(PY)
	$(call install,,$@)

$(VENV)/.dev: pyproject.toml requirements.txt requirements-dev.txt constraints.txt | $(PY)
	$(call install,[dev],$@)
	touch $(VENV)/.run

# The tools of the site live in a venv of their own: they import nothing of ours, and need none of our packages.
$(VENV)/.docs: requirements-docs.txt | $(PY)
	$(PY) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

$(PY):
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not installed; name another one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) -V 2>&1); name another one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
