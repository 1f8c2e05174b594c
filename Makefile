# Commands of the project; `make help` lists them. The first use of each builds what it needs in .venv.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin

# Where the server listens and the page is served. Every T2I_ variable is honoured too; README.md lists them.
export HOST ?= 127.0.0.1
export PORT ?= 3000
export GRPC_PORT ?= 50051
UI_PORT ?= 8501
# Options of `make load` and `make compare`, as in OPTIONS="--quick"; --help lists them.
OPTIONS ?=
# Length of the branch on which the learning rate falls before an export.
DECAY_STEPS ?= 2000

export BENTOML_DO_NOT_TRACK := True
# CPU=1 takes torch's build without CUDA, gigabytes smaller; the default suits GPUs and CPUs alike.
PIP_OPTIONS := $(if $(CPU),--extra-index-url https://download.pytorch.org/whl/cpu)

.DEFAULT_GOAL := help
.PHONY: help serve ui test lint audit debian format load compare bench scaling coldstart bento container train model eval docs samples screenshots proto lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: .venv/.serve ## Serve HTTP on PORT and gRPC on GRPC_PORT
	@exec $(BIN)/bentoml serve service:Gateway --host $(HOST) --port $(PORT)

ui: .venv/.serve .venv/.ui ## Show the page on UI_PORT; it draws with the server on GRPC_PORT
	@T2I_PAGE_PORT=$(UI_PORT) exec $(BIN)/python -m text2image.page

test: debian .venv/.dev .venv/.baselines lint audit ## Run everything that CI runs
	$(BIN)/python -m pytest

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

debian: ## Say which of Debian's packages the tests lack
	@missing=$$(grep -v '^#' requirements/debian.txt | while read -r package command; do \
		PATH=$$PATH:/usr/sbin:/sbin command -v $$command > /dev/null || echo $$package; done); \
	[ -z "$$missing" ] || { echo "the tests need more of Debian; install it with"; \
		echo "    sudo apt-get install" $$missing; exit 1; }

format: .venv/.dev ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

load: .venv/.dev ## Load the server at PORT, or one of its own; writes build/load/report.html
	@$(BIN)/python -m loadtests.load $(OPTIONS)

compare: .venv/.dev .venv/.baselines ## Measure the service beside other designs; writes docs/comparison.md
	@$(BIN)/python -m loadtests.compare $(OPTIONS)

bench: .venv/.dev ## Measure the server against the bare pipeline; writes docs/benchmarks.md
	$(BIN)/python -m loadtests.bench

# Both for a CPU, or with CUDA=1 for GPUs; MODEL=owner/name takes a model of the hub in, in place of the embedded one.
SHIPPED := $(if $(CUDA),--variant cuda) $(if $(MODEL),--model $(MODEL)) $(if $(REVISION),--revision $(REVISION))

coldstart: .venv/.dev ## Measure a start up to the first picture; writes docs/cold-start.md
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

samples: .venv/.dev ## Draw the README's pictures with a running server
	$(BIN)/python -m tools.samples

screenshots: .venv/.dev ## Renew the documents' pictures of the page
	UPDATE_SCREENSHOTS=1 $(BIN)/python -m pytest tests/page/test_looks.py

proto: .venv/.dev ## Generate the Python code of the protos
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. \
		text2image/v1/image_generation.proto
	$(BIN)/python -m grpc_tools.protoc -Iproto --python_out=text2image/net --pyi_out=text2image/net \
		text2image.proto

lock: .venv/.dev ## Write the installed versions to requirements/constraints.txt
	@echo "# Exact versions of all that the other files bring along; made by \`make lock\`." \
		> requirements/constraints.txt
	@$(BIN)/pip freeze | grep -viE "^(torch|nvidia|triton|cuda)" >> requirements/constraints.txt

clean: ## Remove the virtual environment and all caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# A stamp says that the requirements of this name are installed as they stand now.
.venv/.%: requirements/%.txt requirements/constraints.txt | .venv/pyvenv.cfg
	@echo "installing requirements/$*.txt; the first time takes a few minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) \
		-c requirements/constraints.txt -r $<
	@touch $@

# Beside the others, not among them: see the file.
.venv/.baselines: requirements/baselines.txt | .venv/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/baselines -r $<
	@touch $@

.venv/.training: training/requirements.txt | .venv/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.venv/.dev: requirements/serve.txt requirements/ui.txt requirements/load.txt

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
