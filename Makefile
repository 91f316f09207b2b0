# The two commands: `make demo` and `make test`. Both set up what they need. `make site` builds the documentation.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := runs/demo

.PHONY: setup demo test lint site clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,torch]'
	touch $(STAMP)

demo: setup
	$(BIN)/python -m fedjax_spmc.run --config=configs/digits.py:fedavg --workdir=$(DEMO)/fedavg
	$(BIN)/python -m fedjax_spmc.run --config=configs/digits.py --workdir=$(DEMO)/spmc
	$(BIN)/python -m fedjax_spmc.compare $(DEMO)/fedavg $(DEMO)/spmc --png=$(DEMO)/curves.png

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

site: setup
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict
	@echo "the site is in build/site: open build/site/index.html"

clean:
	rm -rf $(VENV) runs build dist *.egg-info
