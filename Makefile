# `make demo`, `make test` and `make check` set up .venv by themselves, once, and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

WATCHED := torchrl tensordict pyvers hoptorch torchrecurrent sb3-contrib stable-baselines3 gymnasium farama-notifications

# The lowest Lightning that pyproject.toml allows, in a folder of its own that goes before what .venv has.
OLD := $(CURDIR)/$(VENV)/lowest-lightning
OLD_TESTS := neutral/test_invariance.py clean/test_fits_and_copies.py acting/test_responses.py clipping/test_adaptive_clip.py durable/test_resumed_log.py

.PHONY: demo test unit lowest-lightning check docs bench matrix clean

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	# For its one file with AGC, which the tests compare with; torchvision, which the rest of it needs, is left out.
	$(BIN)/python -m pip install --quiet --no-deps timm -c constraints.txt
	# Packages whose models are watched as they come. Left out is what they ask for beside torch and is not there for
	# others: torchrl and tensordict name releases of torch, and what is left is for what the tests do not use.
	$(BIN)/python -m pip install --quiet --no-deps $(WATCHED) -c constraints.txt
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/gradwatch demo

unit: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests/unit -m 'not slow'

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 tests

$(OLD)/.installed: $(STAMP)
	rm -rf $(OLD)
	$(BIN)/python -m pip install --quiet --no-deps --target $(OLD) lightning==2.1.1 pytorch-lightning==2.1.1 torchmetrics==1.0.0 'setuptools<81'
	touch $@

# What a Trainer's fit promises, in a minute; with many more releases: `make matrix`.
lowest-lightning: $(OLD)/.installed
	PYTHONPATH=$(OLD) $(BIN)/python -W ignore -c 'import lightning; assert lightning.__version__ == "2.1.1", lightning'
	PYTHONPATH=$(OLD) $(BIN)/python -m pytest -n 2 -m 'not slow' --disable-warnings $(addprefix tests/integration/,$(OLD_TESTS))

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
	$(BIN)/python -m benchmarks.cost

clean:
	rm -rf $(VENV) docs/_build
