# `make demo`, `make test` and `make check` set up .venv by themselves, once, and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test unit check docs bench matrix clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	# For its one file with AGC, which the tests compare with; torchvision, which the rest of it needs, is left out.
	$(BIN)/python -m pip install --quiet --no-deps timm -c constraints.txt
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/gradwatch demo

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests/unit -m 'not slow'

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# The tests with the versions that people have, each row in an environment of its own: gigabytes and hours.
matrix:
	$(PYTHON) -m tests.matrix --write

bench: $(STAMP)
	$(BIN)/python -m benchmarks.cost.overhead

clean:
	rm -rf $(VENV) docs/_build
