# A machine needs Python 3.11 or 3.12, and make. `setup` brings the rest and installs nothing outside this folder.
# Lock files name no host: packages come from the PyPI and Maven mirrors that the machine is configured for.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
UV := .tools/uv/bin/uv
JARS := .venv/share/anabranch/jars
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links
# Packages that clash with PyFlink's get environments of their own: NAME.in lists them, NAME.lock pins them.
APART := $(foreach peer,ray mlserver,bench/systems/serving/$(peer)) $(foreach kind,pytorch tensorflow,tests/importing/$(kind)) \
	tests/interop/requirements tests/interop/schemathesis tests/interop/registry
# For the benchmark's peer in Java.
PEER_JARS := com.microsoft.onnxruntime:onnxruntime:1.29.0 com.google.protobuf:protobuf-java:4.36.2 \
	$(foreach part,databind core annotations,com.fasterxml.jackson.core:jackson-$(part):2.19.0)
# The schema registry of tests.
REGISTRY := io.apicurio:apicurio-registry-app:3.3.3:all:tar.gz
# In the order that `tests/conftest.py` gives them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
# uv would download a Python from a host that not every network reaches; only find_python.sh asks it to.
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1
# Where it is set, every test process compiles the product and the tests again: 16 s instead of 6 s of each start.
export PYTHONDONTWRITEBYTECODE :=
# Trust the certificates of the machine: packages may come through a company's mirror.
CERTIFICATES := $(firstword $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem))
ifneq ($(CERTIFICATES),)
export UV_SYSTEM_CERTS := 1
export REQUESTS_CA_BUNDLE ?= $(CERTIFICATES)
endif

.PHONY: help setup java demo test unit system stack recovery long package peers frameworks zoo lint format docs bench chaos clean lock

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.packages $(JARS)/.complete java ## Install everything into this folder; safe and quick to run again
	@$(BIN)/python -m anabranch.flink_job.installation

demo: setup ## Stream real files through a real model, on a local broker and Flink cluster
	@$(BIN)/anabranch demo $(ARGS)

test: lint ## Lint, check types, run unit and system tests; 15 minutes on 2 cores
	@$(BIN)/python -m pytest -m "unit or slow or system" $(PARALLEL) $(ARGS)

unit: setup ## Run the quick tests, which start neither Kafka nor Flink
	@$(BIN)/python -m pytest -m unit $(PARALLEL) $(ARGS)

system: setup ## Run the tests on a real Kafka broker and Flink cluster
	@$(BIN)/python -m pytest -m system $(PARALLEL) $(ARGS)

stack: setup ## Run the demo, the README, and brokers and clusters of strange kinds
	@$(BIN)/python -m pytest -m "stack and not long" $(ARGS)

recovery: setup ## Run the tests that end processes and restore state under load; 20 minutes
	@$(BIN)/python -m pytest -m "recovery and not long" $(ARGS)

long: setup ## Run the tests that end processes and clusters again and again, and all guides; an hour
	@$(BIN)/python -m pytest -m long $(ARGS)

package: setup ## Build wheel and sdist, and try both in bare environments
	@$(BIN)/python -m pytest -m packaging $(ARGS)

peers: setup ## Run the peers of the benchmark that are quick to set up
	@$(BIN)/python -m pytest -m peers $(ARGS)

frameworks: setup ## Import models of PyTorch and TensorFlow, which this installs (7 GB)
	@$(BIN)/python -m pytest -m frameworks $(ARGS)

zoo: setup ## Cut large models into stages, one of them larger than 2 GB
	@$(BIN)/python -m pytest -m zoo $(ARGS)

lint: setup ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

format: setup ## Format the code and apply ruff's fixes
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: setup ## Build the documentation site in site/
	@$(BIN)/mkdocs build --strict --quiet

bench: setup ## Measure this project and its peers on this machine; up to three hours; more with ARGS='--minutes N'
	@$(BIN)/python -m bench $(ARGS)

chaos: setup ## Kill, stop and cut off a stack under load, and judge every answer; two hours, in slices of fifteen minutes
	@$(BIN)/python -m tests.chaos $(ARGS)

clean: ## Stop the local stack and remove all generated files of this folder
	@if [ -x $(BIN)/anabranch ]; then $(BIN)/anabranch down || true; fi
	@rm -rf .venv .tools .anabranch build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: .tools/jgo.stamp ## For maintainers: resolve all packages and jars again, and write the lock files
	@$(COMPILE) --upgrade pyproject.toml --extra demo --extra text --extra pictures --extra protobuf --group dev -o requirements.lock
	@$(COMPILE) -c requirements.lock pyproject.toml --extra demo --extra text --extra pictures --extra protobuf --group build -o deploy/requirements.lock
	@$(COMPILE) --upgrade --group pyproject.toml:jars -o deploy/requirements-jgo.lock
	@$(COMPILE) --upgrade --group pyproject.toml:java -o deploy/requirements-java.lock
	@$(COMPILE) --upgrade --group pyproject.toml:uv -o deploy/requirements-uv.lock
	@.tools/jgo/bin/python deploy/jars.py lock
	@for set in $(APART); do $(COMPILE) --upgrade $$set.in -o $$set.lock; done
	@for set in tests/partition/zoo tests/importing/minilm bench/workloads/transformers; do \
		$(COMPILE) --upgrade --no-deps $$set.in -o $$set.lock; done
	@.tools/jgo/bin/python deploy/jars.py pin --lock bench/systems/flink/jars.lock --folder peers $(PEER_JARS)
	@.tools/jgo/bin/python deploy/jars.py pin --lock tests/interop/jars.lock --folder registry $(REGISTRY)

# ---- the parts of `setup` ---------------------------------------------------------------------------------------------

# Any Python runs uv. Some distributions keep the venv module in a package of its own: the next one may have it.
.tools/uv.stamp: deploy/requirements-uv.lock
	@for python in $(PYTHON) python3.12 python3.11 python3; do \
		if $$python -m venv --clear .tools/uv >/dev/null 2>&1; then \
			echo "setup: uv, with $$($$python --version)"; made=yes; break; fi; done; \
	if [ -z "$${made:-}" ]; then echo "setup: no Python with the venv module on PATH: install python3.12 or python3.11 (on Debian also python3.12-venv or python3.11-venv)" >&2; exit 1; fi
	@.tools/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# Holds the path of the interpreter that every environment is made from.
.tools/python: deploy/find_python.sh .tools/uv.stamp
	@PYTHON="$(PYTHON)" deploy/find_python.sh $(UV) "$(CURDIR)/.tools/pythons" > $@

.venv/.packages: requirements.lock pyproject.toml .tools/python
	@echo "setup: Python packages (about 1.2 GB the first time)"
	@[ -x $(BIN)/python ] || $(UV) venv --quiet --clear --python "$$(cat .tools/python)" .venv
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.tools/jgo.stamp: deploy/requirements-jgo.lock .tools/python
	@echo "setup: jgo, which downloads jars without Maven"
	@$(UV) venv --quiet --clear --python "$$(cat .tools/python)" .tools/jgo
	@$(UV) pip sync --quiet --python .tools/jgo/bin/python --require-hashes $<
	@touch $@

$(JARS)/.complete: deploy/jars.lock deploy/jars.py .tools/jgo.stamp .venv/.packages
	@echo "setup: jars of the Kafka connector and broker"
	@.tools/jgo/bin/python deploy/jars.py fetch --to $(JARS)
	@touch $@

# Checked on every run: it is quick, and the machine's Java may have been removed.
java: .venv/.packages deploy/requirements-java.lock
	@if ! $(BIN)/python -m anabranch.flink_job.installation --java >/dev/null 2>&1; then \
		echo "setup: Java 17, for this machine has none"; \
		$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r deploy/requirements-java.lock; fi
