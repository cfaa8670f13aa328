# `make demo` and `make test` need Python 3.11 or later, git and make; they set up everything else in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format docs bench reliability clean

# Encode, interpolate and reconstruct real images into demo/.
demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh demo

# Everything that must hold before a commit.
test: lint
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Measures the figures in docs/ again, on the bundled held-out images. An hour or so. With IMAGES=folder or IDX file (a test
# set) on those, and table 2 on all of them: hours, which may be interrupted.
docs: $(READY)
	$(BIN)/python benchmarks/inversion.py $(IMAGES)
	$(BIN)/python benchmarks/paper.py
	$(if $(IMAGES),$(BIN)/python benchmarks/table_2.py $(IMAGES))

# Measures docs/performance.md and the README's table of speed again. Ten minutes, on a machine that does nothing else.
bench: $(READY)
	$(BIN)/python benchmarks/versus_diffusers.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Kills, full disks, damaged and hostile files, by the thousand: rewrites RELIABILITY.md. Minutes.
reliability: $(READY)
	$(BIN)/python benchmarks/reliability.py -o RELIABILITY.md

# Runs once, and again where the pins change. pip older than 25.1 does not know --group.
$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) with torch and the rest: once, some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $(READY)

clean:
	rm -rf $(VENV) demo dist build
