# Set-up and thin names only: DVC is the task runner, dvc.yaml says what runs.
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(shell command -v python$(version))) python3)
SHELL := /bin/bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Idle OpenMP threads sleep after a short spin; stages/model/loading.py says why.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 2000

.PHONY: repro test pages lock mutants format clean

# Warnings of libraries are for those who maintain this, and `make test` shows them; progress bars stay.
repro: export PYTHONWARNINGS := ignore
repro: export TRANSFORMERS_VERBOSITY := error
repro: .venv/installed  ## everything, from the base model to the table of results; PULL=1: what the remote has is not run
	@python -m tools.mend
	dvc repro build$(if $(PULL), --pull)
	python -m tools.plan --check
	dvc repro$(if $(PULL), --pull)
	@$(MAKE) --silent pages
	@echo
	@echo 'Ask the model:            python -m tools.ask "remind me to water the plants"'
	@echo 'What a change did:        python -m tools.report HEAD'
	@echo 'On rows of your own:      python -m tools.measure FILE'
	@echo 'Fine-tune, or prompt?     python -m tools.advise'

test: .venv/installed  ## style, types, workflows, tests
	ruff check .
	ruff format --check .
	mypy
	zizmor --offline --quiet --persona=auditor --strict-collection .github
	check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	OMP_NUM_THREADS=1 pytest -n auto --dist loadfile

pages: .venv/installed  ## every generated table and picture; the results are printed as well
	python -m tools.table --write README.md --write docs/deciding.md
	python -m experiments.page docs/experiments.md
	python -m tools.plots

# Versions stay as they are unless UPGRADE=--upgrade; uv reads its own settings, not pip's (UV_INDEX_URL, SSL_CERT_FILE).
lock: .venv/installed  ## constraints.txt from pyproject.toml: what is missing is added, what is not needed goes
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command 'make lock' --output-file constraints.txt --quiet $(UPGRADE)

# Minutes for a module with its own tests: make mutants ONLY='stages.scores.stats.*' TESTS=test_stats
mutants: .venv/installed  ## which faults in the code would no test notice: hours; see [tool.mutmut] in pyproject.toml
	$(if $(TESTS),PYTEST_ADDOPTS='-k "$(TESTS)"') mutmut run --max-children 1 $(ONLY)
	mutmut results

format: .venv/installed  ## let ruff rewrite the code
	ruff check --fix .
	ruff format .

# torch first and alone: whatever build satisfies the pin stays, and pip takes an installed package without comparing
# its hash. Everything else has to have one of the hashes in the list; `pip check` says if the list has a hole.
.venv/installed: constraints.txt
	$(PYTHON) -m venv .venv
	pip install "$$(grep --only-matching '^torch==[^ ]*' constraints.txt)"
	pip install --no-deps --requirement constraints.txt
	pip check
	touch .venv/installed

clean:  ## the environment and scratch files; data, models and metrics stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache mutants
