# `make demo` shows the whole way, `make test` runs every test; both make their environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# One more than cores: tests wait for much of their time.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)')
UNIT = tests/unit --ignore-glob='*trainer*'
BARE = $(UNIT) tests/e2e/test_three_commands.py tests/e2e/test_other_peoples_projects.py tests/server/test_support.py

.PHONY: demo test quick bare coverage lint messages pictures clean

$(READY): requirements-dev.txt requirements.txt remote/requirements.txt trainer/requirements.txt tests/requirements.txt
	@echo "making $(VENV): downloads PyTorch and what the trainer and the tests need, once;" \
	  "on Linux 5.6 GB on the disk, with the libraries for GPUs"
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) \
	    && uv pip install --python $(BIN)/python -r requirements-dev.txt; \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --disable-pip-version-check \
	    --progress-bar on -r requirements-dev.txt; \
	fi
	@touch $(READY)

demo: $(READY)
	$(BIN)/fab demo $(if $(DATA),--data "$(DATA)")

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# The orchestrator's unit tests alone.
quick: $(READY)
	$(BIN)/python -m pytest $(UNIT) $(ARGS)

# As on a machine with python3 and git alone: no OpenSSH, tmux and rsync.
bare: $(READY)
	$(BIN)/python -m tests.support.bare $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(or $(ARGS),$(BARE))

coverage: $(READY)
	$(BIN)/python -m pytest $(UNIT) --cov --cov-report=term:skip-covered $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks

# The Chinese catalogue: new messages in, dead ones out, remote.mo anew; names what is not translated.
messages: $(READY)
	$(BIN)/python -m tests.support.messages

# The screens in docs/screens; needs tmux.
pictures: $(READY)
	$(BIN)/python -m benchmarks.pictures

clean:
	rm -rf $(VENV)
