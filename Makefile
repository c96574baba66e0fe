# `make demo` shows the whole way, `make test` runs every test; both make their environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: demo test quick lint pictures clean

$(READY): requirements-dev.txt requirements.txt remote/requirements.txt trainer/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $(READY)

demo: $(READY)
	$(BIN)/fab demo $(if $(DATA),--data "$(DATA)")

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

quick: $(READY)
	$(BIN)/python -m pytest tests/unit --ignore-glob='*trainer*' $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The screens in docs/screens; needs tmux.
pictures: $(READY)
	$(BIN)/python -m benchmarks.pictures

clean:
	rm -rf $(VENV)
