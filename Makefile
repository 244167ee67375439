# `make demo` and `make test` need Python 3.11 or newer and nothing else.
# On Linux a plain `pip install torch` brings gigabytes of CUDA; scripts/install_torch.py chooses the CPU build.

PYTHON ?= python3
# Many tests wait for a lease, an outage or a process: two at a time, each file in one process.
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock

.PHONY: help demo up test test-fast chaos proof check format bench lock clean

help:
	@echo "make demo       the whole way on this machine: train, submit, certify, chat"
	@echo "make up         run olivepress on this machine (olivepress up)"
	@echo "make test       all tests; makes the environment when it is missing"
	@echo "make test-fast  the unit tests only"
	@echo "make chaos      kill parts of a stack at random; MINUTES=2 DATABASE=sqlite|postgresql SEED=..."
	@echo "make proof      good and damaged models against the gates; ONLY=WORD"
	@echo "make check      ruff, mypy, import-linter"
	@echo "make bench      the benchmarks"
	@echo "make lock       write requirements.lock anew from the present environment"

$(VENV)/.torch: requirements.lock scripts/install_torch.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "olivepress needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch (CPU) ..."
	@$(BIN)/python scripts/install_torch.py
	@touch $@

$(VENV)/.worker: $(VENV)/.torch pyproject.toml requirements.lock
	@echo "installing olivepress and its toolchain ..."
	@$(PIP) --editable '.[server,worker]'
	@touch $@

$(VENV)/.test: $(VENV)/.worker
	@echo "installing what the tests need ..."
	@$(PIP) --editable '.[server,worker,test]'
	@touch $@

demo: $(VENV)/.worker
	@$(BIN)/olivepress demo

up: $(VENV)/.worker
	@$(BIN)/olivepress up

test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(PYTEST_ARGS)

test-fast: $(VENV)/.test
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

chaos: $(VENV)/.test
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),2) --database $(or $(DATABASE),sqlite) $(if $(SEED),--seed $(SEED))

proof: $(VENV)/.test
	$(BIN)/python -m tests.proof $(if $(ONLY),--only "$(ONLY)")

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python bench/store.py
	$(BIN)/python bench/queue_times.py
	$(BIN)/python bench/variants.py

lock:
	$(BIN)/python scripts/write_lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
