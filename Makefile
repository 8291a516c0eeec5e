# Set-up and thin names only: DVC is the task runner, dvc.yaml says what runs.
PYTHON ?= python3.11
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: repro test format clean

repro: .venv/installed  ## everything, from the base model to the table of results and the advice
	dvc repro
	python -m tools.table --write README.md --write docs/deciding.md
	python -m tools.advise --write docs/deciding.md

test: .venv/installed  ## style, types, workflows, tests
	ruff check .
	ruff format --check .
	mypy
	zizmor --offline --quiet --persona=auditor --strict-collection .github
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	pytest

format: .venv/installed  ## let ruff rewrite the code
	ruff check --fix .
	ruff format .

# torch first and alone: whatever build satisfies the pin stays, and nothing after it pulls another. The rest is an
# exact list, so nothing is left to resolve; `pip check` says if the list has a hole.
.venv/installed: constraints.txt
	$(PYTHON) -m venv .venv
	pip install --constraint constraints.txt torch
	pip install --no-deps --requirement constraints.txt
	pip check
	touch .venv/installed

clean:  ## the environment and scratch files; data, models and metrics stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache
