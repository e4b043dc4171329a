# With Python 3.11 to 3.13, make and git: `make demo`, `make test`.

PYTHON ?= python3
EXTRA ?=
BIN := .venv/bin

.PHONY: demo test test-fast test-kill bench-curation bench-statistics bench-serving bench-training bench-scoring bench-trials bench-cluster bench-faults schema check format install lock clean

demo: install  ## Curate, train, serve, judge and rank on traffic made here (15 minutes on 2 cores).
	$(BIN)/flywheel run experiments/demo.yaml

test: install  ## Every tier: pure, Ray, services, whole jobs.
	$(BIN)/python -m pytest

test-fast: install  ## The pure tests: seconds.
	$(BIN)/python -m pytest -m "not ray and not services and not e2e"

bench-curation: install  ## Curation's speed and memory, 100,000 to 2,000,000 records (a quarter of an hour).
	$(BIN)/python -m tests.benchmarks.curation

bench-statistics: install  ## Coverage of intervals and false promotions on simulated boards (minutes).
	$(BIN)/python -m tests.benchmarks.statistics
bench-serving: install  ## The whole path against vLLM's own benchmark client (6 minutes).
	$(BIN)/python -m tests.benchmarks.serving
bench-training: install  ## LoRA's speed against TRL and a plain PEFT loop (20 minutes).
	$(BIN)/python -m tests.benchmarks.training
bench-scoring: install  ## Speed of scoring, agreement with BFCL's checker (a minute).
	$(BIN)/python -m tests.benchmarks.scoring
	$(BIN)/python -m tests.benchmarks.board
	$(BIN)/python -m tests.benchmarks.bfcl
bench-trials: install  ## What trials cost that do nothing (7 minutes); tests/benchmarks/results/.
	$(BIN)/python -m tests.benchmarks.trials
bench-cluster: install  ## A thousand trials on 128 made-up GPUs, simulated; 60 on 8, for real (4 minutes).
	$(BIN)/python -m tests.benchmarks.cluster
bench-faults: install  ## How long it takes to recover from the faults of docs/faults.md (20 minutes).
	$(BIN)/python -m tests.benchmarks.faults

test-kill: install  ## Kill runs at more moments than `make test` does: KILLS=50 SEED=1.
	FLYWHEEL_KILLS=$(or $(KILLS),50) FLYWHEEL_KILL_SEED=$(or $(SEED),1) $(BIN)/python -m pytest tests/e2e/test_run_killed.py

schema: install  ## experiments/schema.json anew, after a field of config has changed.
	$(BIN)/flywheel schema > experiments/schema.json

check: install  ## Lint, formatting, types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install:  ## .venv as requirements.lock says; at once if it is. EXTRA=gpu: vLLM with CUDA instead.
	@$(PYTHON) scripts/bootstrap.py $(if $(EXTRA),--extra $(EXTRA))

LOCK_COMMAND = build/lock/bin/uv pip compile pyproject.toml --group dev --universal --quiet \
  --python-version 3.11 --no-annotate --custom-compile-command "make lock" \
  $(if $(UPGRADE),--upgrade)

lock:  ## Write both locks anew, keeping pins that still fit. UPGRADE=1 drops them.
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --disable-pip-version-check uv
	$(LOCK_COMMAND) --extra cpu --output-file requirements.lock \
	  --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
	cp requirements.lock requirements-gpu.lock  # so that both pin alike what both need
	$(LOCK_COMMAND) --extra gpu --output-file requirements-gpu.lock --only-binary :all:
	rm -rf build/lock

clean:  ## Remove the environment and caches; runs and data stay.
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
