# `make demo` and `make test` need Python 3.11 or later, git and make; they set up everything else in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast test-ui gallery gallery-emoji site margins lint format docs bench latency reliability clean

# Encode, interpolate and reconstruct real images into demo/.
demo: $(READY)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh demo

# As many tests at a time as there are processors, in an order of chance; its seed is printed, --randomly-seed repeats it.
PYTEST := $(BIN)/pytest -v --numprocesses auto --maxprocesses 8 --dist worksteal

# Everything that must hold before a commit.
test: lint
	$(PYTEST)

# What the hand waits for: no test that takes seconds.
test-fast: $(READY)
	$(PYTEST) -m "not slow"

# The tests of `ddimctl ui`, in an environment of their own, as gradio needs an older Pillow; those with a browser need Chromium,
# and axe-core, which a package of the environment brings.
UI := .venv-ui/bin/python
test-ui: .venv-ui/.ready
	$(UI) -m pytest -v -rs tests/test_page.py tests/test_page_browser.py

.venv-ui/.ready: pyproject.toml constraints-ui.txt
	test -x $(UI) || $(PYTHON) -m venv .venv-ui
	$(UI) -m pip install --quiet --upgrade "pip>=25.1"
	$(UI) -m pip install --quiet --constraint constraints-ui.txt --editable '.[ui,openvino,diffusers,video]' \
		axe-playwright-python hypothesis playwright pytest
	touch $@

# docs/gallery.md, its films and its pictures, by the commands that stand in it. Some minutes.
gallery: $(READY)
	$(BIN)/python benchmarks/gallery.py

# Those of them that the model emoji makes, for when it was trained anew, with Noto Color Emoji where the system has it.
gallery-emoji: $(READY)
	$(BIN)/python benchmarks/gallery.py "-m emoji"
	$(BIN)/python benchmarks/paper.py "-m emoji"
	rm -rf build/emoji-glyphs
	$(BIN)/python examples/emoji.py -o build/emoji-glyphs
	$(BIN)/python benchmarks/direction.py build/emoji-glyphs

# The documentation as a site, into site/: the README and docs/, with a reference made from the commands.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# How near every tolerance comes to its limit, under six settings of instruction sets and threads. Six times `make test`.
margins: $(READY)
	$(BIN)/python tests/margins.py --numprocesses auto --maxprocesses 8 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Measures the figures in docs/ again, on the bundled held-out images, and makes its films and pictures. An hour or so. With IMAGES=folder or IDX file (a test
# set) on those, and table 2 on all of them: hours, which may be interrupted.
docs: $(READY)
	$(BIN)/python benchmarks/inversion.py $(IMAGES)
	$(BIN)/python benchmarks/paper.py
	$(BIN)/python benchmarks/gallery.py
	$(BIN)/python benchmarks/guidance.py emoji-text
	$(BIN)/python benchmarks/editing_gallery.py emoji-text
	$(if $(IMAGES),$(BIN)/python benchmarks/table_2.py $(IMAGES))

# Measures docs/performance.md and the README's table of speed again. Twenty minutes, on a machine that does nothing else. With
# OTHERS=folder steps and spacing are chosen on those PNGs, and all bundled images are timed.
bench: $(READY)
	$(BIN)/python benchmarks/versus_diffusers.py $(if $(OTHERS),--others $(OTHERS))

# Where the time of one image goes, beside the machine's limits, in docs/performance.md. Three minutes, of processor time.
latency: $(READY)
	$(BIN)/python benchmarks/latency.py

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
	rm -rf $(VENV) .venv-ui demo dist build site
