# Two commands for a newcomer: `make demo` and `make test`. Everything else follows from them.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Nothing phones home and nothing is fetched at run time.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export HF_HUB_OFFLINE := 1
export RAY_USAGE_STATS_ENABLED := 0

LONG := tests/deployed/test_kills.py tests/deployed/test_faults.py tests/server/deploy/test_runs.py
DEPLOYED := $(LONG) $(filter-out $(LONG),$(wildcard tests/deployed/test_*.py))
# Long files first, so that nobody waits for one at the end.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-here test-deployed check bench proto install clean

demo: install ## install, run the main job on the built-in demo federation, say where the report is
	$(BIN)/isthmus simulate

test: install ## all tests, the slow ones and those on real data included
	@# Several processes compute at a time, each on one core.
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --jobs 2 test-here test-deployed

test-here: install ## what starts no whole federation; gives way to what does
	nice -n 10 $(PYTEST) -m "not deployed"

test-deployed: install ## real processes against real clocks, two federations at a time: half of it is waiting
	@# What failed is run once more, one at a time and in sight; what fails twice has failed.
	$(PYTEST) -m deployed -o cache_dir=.pytest_cache/deployed $(DEPLOYED) \
		|| $(BIN)/python -m pytest -m deployed -o cache_dir=.pytest_cache/deployed --last-failed --last-failed-no-failures none $(DEPLOYED)

check: install ## lint, types, import contracts, documentation and help texts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/docs tests/cli/test_help.py -q -m "not slow"

bench: install ## everything against named peers, in CPU-seconds; writes RESULTS.md, and ROUNDS.md for deployed rounds
	$(BIN)/python benchmarks/table.py
	$(BIN)/python benchmarks/rounds/compare.py

proto: install ## the vault's messages, from their description
	$(BIN)/python -m grpc_tools.protoc -I src --python_out=src --pyi_out=src src/isthmus/clients/wire/vault.proto

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@test -L src/isthmus/server || { echo "error: src/isthmus/server is not a symbolic link; clone with links (git config core.symlinks true)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,ray]'
	touch $@

clean: ## forget the environment and everything that was made
	rm -rf $(VENV) build dist src/*.egg-info isthmus-demo isthmus-run benchmarks/runs
