# Commands of the project; `make help` lists them. The first use of each builds what it needs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

# Where the server listens and the page is served. Every T2I_ variable is honoured too; docs/settings.md lists them.
export HOST ?= 127.0.0.1
export PORT ?= 3000
export GRPC_PORT ?= 50051
UI_PORT ?= 8501
PYTEST := $(BIN)/python -m pytest
# Three processes, since tests wait for much of their time; they take the tests in the order of tests/conftest.py.
SIDE_BY_SIDE := -n 3 --no-loadscope-reorder
# Options of `make load`, `make compare` and `make bench`, as in OPTIONS="--quick"; --help lists them.
OPTIONS ?=
# Length of the branch on which the learning rate falls before an export.
DECAY_STEPS ?= 2000

export BENTOML_DO_NOT_TRACK := True
# What is installed is compiled where it is imported first, and must be kept for all that import it later.
unexport PYTHONDONTWRITEBYTECODE
# CPU=1 or 0 overrules what is found of NVIDIA GPUs, UV=0 takes pip where there is uv.
export CPU UV
# The optional parts that the settings in the environment need; requirements/ has a file for each.
EXTRAS := $(if $(T2I_REDIS_URL)$(T2I_CACHE_REDIS_URL),redis) $(if $(T2I_OTLP_ENDPOINT),otlp) \
	$(if $(T2I_TRANSFORMER),gguf) $(if $(T2I_PAGE_PORT),page) $(if $(filter s3://%,$(T2I_OUTPUT_DIR)),s3) \
	$(if $(filter int8 fp8 nf4,$(T2I_QUANTIZE)),quantize) $(if $(T2I_C2PA_CERT),c2pa) $(if $(T2I_UPSCALERS),upscale) \
	$(if $(filter postgres%,$(T2I_JOBS_URL)),postgres) \
	$(if $(filter-out 0 off false no model,$(T2I_SAFETY)),$(if $(T2I_SAFETY_MODEL),,safety))
# The embedded model as OpenVINO reads it, by what is installed.
CONVERTED := .venv/.converted

.DEFAULT_GOAL := help
.PHONY: help serve ui test test-fast clients ray lint audit debian format load compare bench scaling coldstart bento container train model eval docs samples screenshots proto lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: .venv/.serve $(EXTRAS:%=.venv/.%) $(CONVERTED) ## Serve HTTP on PORT and gRPC on GRPC_PORT
	@exec $(BIN)/bentoml serve service:Gateway --host $(HOST) --port $(PORT)

ui: .venv/.serve .venv/.page ## Show the page on UI_PORT; it draws with the server on GRPC_PORT
	@T2I_PAGE_PORT=$(UI_PORT) exec $(BIN)/python -m text2image.page

test: ## Run everything that CI runs
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line build/debian.tar .venv/.baselines lint audit
	@$(MAKE) --no-print-directory $(CONVERTED) .venv/.upscale
	$(PYTEST) $(SIDE_BY_SIDE)

test-fast: .venv/.dev $(CONVERTED) .venv/.upscale ## Run the unit tests, and one client against a real server
	$(PYTEST) $(SIDE_BY_SIDE) tests/unit
	$(PYTEST) tests/e2e/test_first_contract.py

clients: .venv/.dev .venv/.clients .venv/.clients-debian tests/clients/node/node_modules $(CONVERTED) ## Run other people's clients against a real server
	$(PYTEST) -m clients tests/clients

ray: .venv/.dev .venv/.ray $(CONVERTED) ## Run the example with Ray Data on a Ray of this machine
	$(PYTEST) -m ray tests/e2e/test_ray_data.py

lint: .venv/.dev ## Check format, style, types, import boundaries and protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/hadolint deploy/container/Dockerfile

audit: .venv/.dev ## Look for unsafe code, and for known vulnerabilities of what is installed
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive text2image service.py frontend
	$(BIN)/python -m tools.audit

debian: ## Install what the tests start and pip does not have, where that is allowed
	@sh tools/debian.sh || echo "what needs them is not run; the end of the tests lists it"

# While pip keeps the other core busy. Without it the tests of the container do the same, or tell what they lack.
build/debian.tar: | debian
	@$(PYTHON) -m tests.container.build || echo "Debian's files were not fetched; the tests try again"

format: .venv/.dev ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

load: .venv/.dev $(CONVERTED) ## Load the server at PORT, or one of its own; writes build/load/report.html
	@$(BIN)/python -m loadtests.load $(OPTIONS)

compare: .venv/.dev .venv/.baselines $(CONVERTED) ## Measure the service beside other designs; writes docs/comparison.md
	@$(BIN)/python -m loadtests.compare $(OPTIONS)

bench: .venv/.dev $(CONVERTED) ## Measure the server against the bare pipeline; writes docs/benchmarks.md
	@$(BIN)/python -m loadtests.bench $(OPTIONS)

# Both for a CPU, or with CUDA=1 for GPUs; MODEL=owner/name takes a model of the hub in, in place of the embedded one.
SHIPPED := $(if $(CUDA),--variant cuda) $(if $(MODEL),--model $(MODEL)) $(if $(REVISION),--revision $(REVISION))

coldstart: .venv/.dev $(CONVERTED) ## Measure a start up to the first picture; writes docs/cold-start.md
	$(BIN)/python -m loadtests.coldstart

bento: .venv/.serve ## Build the Bento
	@$(BIN)/python -m tools.bento $(SHIPPED)

container: .venv/.serve ## Build the container's image, with docker, podman or buildah
	@$(BIN)/python -m tools.container $(SHIPPED) $(BUILDER_OPTIONS:%=--opt %)

train: .venv/.dev .venv/.training ## Train the embedded model; stop it at any time, the next call goes on
	nice -n 19 $(BIN)/python -m training.train

model: .venv/.dev .venv/.training ## Branch off the training with a falling rate, and export to models/embedded
	nice -n 19 $(BIN)/python -m training.train --decay $(DECAY_STEPS)
	$(BIN)/python -m training.export models/embedded

eval: .venv/.dev .venv/.training ## Judge the embedded model; figures go into its card
	nice -n 19 $(BIN)/python -m training.evaluate models/embedded

docs: .venv/.dev ## Renew what the documents take from the code
	$(BIN)/python -m tools.settings_table

samples: .venv/.dev ## Draw the documents' pictures with a running server
	$(BIN)/python -m tools.samples

screenshots: .venv/.dev ## Renew the documents' pictures of the page
	UPDATE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/page/test_looks.py

proto: .venv/.dev ## Generate the Python code of the protos
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. \
		text2image/v1/image_generation.proto text2image/v1/jobs.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=text2image/net --pyi_out=text2image/net \
		text2image.proto orca_load_report.proto

lock: .venv/.dev ## Write the installed versions to requirements/constraints.txt
	@echo "# Exact versions of all that the other files bring along; made by \`make lock\`." \
		> requirements/constraints.txt
	@$(BIN)/pip freeze | grep -viE "^(torch|nvidia|triton|cuda)" >> requirements/constraints.txt

clean: ## Remove the virtual environment and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp says that the requirements of this name are installed as they stand now.
.venv/.%: requirements/%.txt requirements/constraints.txt
	@$(PYTHON) tools/install.py .venv $<
	@touch $@

# Without what they name themselves: see the file.
.venv/.upscale: requirements/upscale.txt .venv/.serve
	@$(BIN)/pip install -qq --disable-pip-version-check --no-compile --no-deps -r $<
	@touch $@

# Beside the others, not among them: see the file.
.venv/.baselines: requirements/baselines.txt .venv/.dev
	@$(BIN)/pip install -qq --disable-pip-version-check --no-compile --no-deps --upgrade --target .venv/baselines -r $<
	@touch $@

# In an environment of their own, since they need other versions of much.
.venv/.clients: requirements/clients.txt .venv/.dev
	@$(BIN)/python -m venv .venv/clients
	@.venv/clients/bin/pip install -qq --disable-pip-version-check -r $<
	@touch $@

# Its clients are generated and compiled; those that lack a compiler are skipped.
.venv/.clients-debian: requirements/clients-debian.txt .venv/.dev
	@sh tools/debian.sh $$(grep -v '^#' $<) && touch $@ || echo "clients that need them are not run"

tests/clients/node/node_modules: tests/clients/node/package-lock.json
	@npm ci --prefix tests/clients/node --no-audit --no-fund --loglevel=error
	@touch $@

# Other models are converted when they are first loaded.
$(CONVERTED): requirements/serve.txt text2image/engine/models/loading.py $(wildcard text2image/engine/runtimes/*.py)
	@$(BIN)/python -m text2image.engine.runtimes.conversion models/embedded 2> .venv/converted.log \
		|| tail -1 .venv/converted.log
	@touch $@

.venv/.training: training/requirements.txt .venv/.dev
	@$(PYTHON) tools/install.py .venv $<
	@touch $@

.venv/.dev: $(addprefix requirements/,$(addsuffix .txt,serve page postgres redis s3 quantize otlp gguf canny c2pa safety load))
