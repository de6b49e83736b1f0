VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs fix reference bench overhead clean

demo: $(VENV)/.installed  ## install, run the quick start, ask its student a new question
	$(BIN)/first report recipes/quickstart.yaml
	$(BIN)/first predict runs/quickstart "At dusk Tibro, the black goat of the river, will"

test: $(VENV)/.installed-test  ## install with the test extras, run the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-test  ## the tests that `make test` leaves out
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist load -m slow

lint: $(VENV)/.installed-dev  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## the documentation as a site in docs/_build; warnings are errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

reference: $(VENV)/.installed  ## the pages of docs/reference, from the models of recipes and plugins
	$(BIN)/python -m firstcli.commands.reference docs/reference

bench: $(VENV)/.installed  ## speed and memory against goals, as a table; needs an idle machine
	$(BIN)/python benchmarks/bench.py

overhead: $(VENV)/.installed  ## the pipeline compared with a bare loop, as whole processes in turns
	$(BIN)/python benchmarks/overhead.py recipes/quickstart.yaml

fix: $(VENV)/.installed-dev  ## format, and apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The constraints file pins the PyTorch that we test with.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed-test $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf docs/_build $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
