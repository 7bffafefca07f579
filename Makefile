# Two commands on a fresh machine: make demo, make test. Both create .venv and install into it; so does make docs, the site in build/site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test docs clean

demo: $(VENV)/.installed-demo
	$(BIN)/prunus demo

test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto -m "not long"
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m long

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its exact version: an open range would bring the CUDA build and gigabytes with it.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-demo
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[demo,docs]"
	touch $@

clean:
	rm -rf $(VENV) runs build
