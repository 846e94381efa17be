# make demo: install, then search, retrain and score on the synthetic set
# make test: install the rest, then run every test
# make test-oldest: run every test with the lowest versions that are admitted
# make lint: check style and types
# make bench: speed and memory compared with a plain implementation, in a short form
# make faults: kill runs, fill disks, exhaust memory; a table of results (some ten minutes)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-oldest lint bench faults clean

demo: .venv/installed
	$(BIN)/python -m tools.reproduce --preset demo --out demo/$$(date +%Y%m%d-%H%M%S)

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-oldest: .venv-oldest/installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks.speed --short --out bench/short.json

faults: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.faults

clean:
	rm -rf .venv .venv-oldest demo

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed, found " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt requirements-photo.txt requirements-export.txt requirements-tensorboard.txt .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv-oldest/installed: requirements-oldest.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13) and "torch 2.4 needs Python 3.10 to 3.12, found " + sys.version)'
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-oldest.txt
	touch $@
