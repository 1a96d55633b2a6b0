# Thin on purpose: every target makes sure that hatch is there, then calls one hatch script (see pyproject.toml).
# Needs Python 3.11 or newer with venv, git and make. Only gpu-check does without hatch: it runs on the torch and triton
# that $(PYTHON) has, as in: make gpu-check PYTHON=python ARGS="--groups attention"

PYTHON ?= python3
HATCH := .venv/bin/hatch
# Keeps every environment inside the checkout, so that deleting the folder deletes all of it.
export HATCH_DATA_DIR := $(CURDIR)/.hatch

.PHONY: demo test check bench build gpu-check

demo: $(HATCH)
	$(HATCH) run demo

test: $(HATCH)
	$(HATCH) run test

check: $(HATCH)
	$(HATCH) run check

bench: $(HATCH)
	$(HATCH) run bench

build: $(HATCH)
	$(HATCH) run build

gpu-check:
	$(PYTHON) benchmarks/kernels/gpu_check.py $(ARGS)

$(HATCH): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11: pass another one, as in: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt hatch
	@touch $(HATCH)
