# All that this needs on a machine is Python 3.11 and make; `setup` brings the rest, and installs nothing outside this
# folder. Lock files name no host: packages come from whatever PyPI and Maven mirrors the machine is set up for.

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
# What clashes with PyFlink's packages has environments of its own: NAME.in says what is wanted, NAME.lock what that comes to.
APART := $(foreach peer,ray mlserver,bench/systems/serving/$(peer)) $(foreach kind,pytorch tensorflow,tests/importing/$(kind)) \
	tests/interop/requirements
# Of the benchmark's peer in Java.
PEER_JARS := com.microsoft.onnxruntime:onnxruntime:1.29.0 com.google.protobuf:protobuf-java:4.36.2 \
	$(foreach part,databind core annotations,com.fasterxml.jackson.core:jackson-$(part):2.19.0)
# uv would fetch a Python of its own from a place that not every network reaches.
export UV_PYTHON_DOWNLOADS := never
export UV_NO_PROGRESS := 1
# Trust whom the machine trusts, where it says so: packages may come through a company's own mirror.
CERTIFICATES := $(firstword $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem))
ifneq ($(CERTIFICATES),)
export UV_SYSTEM_CERTS := 1
export REQUESTS_CA_BUNDLE ?= $(CERTIFICATES)
endif

.PHONY: help setup java demo test frameworks zoo lint format docs bench chaos clean lock

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.packages $(JARS)/.complete java ## Bring all that is needed; safe and quick to run again
	@$(BIN)/python -m anabranch.flink_job.installation

demo: setup ## Stream real files through a real model, on a local broker and Flink cluster
	@$(BIN)/anabranch demo $(ARGS)

test: lint ## Lint, check types, run the tests
	@$(BIN)/python -m pytest $(ARGS)

frameworks: setup ## Import models of PyTorch and TensorFlow, which this brings (7 GB)
	@$(BIN)/python -m pytest -m frameworks $(ARGS)

zoo: setup ## Cut large models into stages, one of more than 2 GB among them
	@$(BIN)/python -m pytest -m zoo $(ARGS)

lint: setup ## Check style, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

format: setup ## Rewrite the code in the house style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

docs: setup ## Build the documentation site in site/
	@$(BIN)/mkdocs build --strict --quiet

bench: setup ## Measure this project and its peers on this machine; hours, or much less with ARGS=--quick
	@$(BIN)/python -m bench $(ARGS)

chaos: setup ## Kill task managers under load; count what was lost or doubled
	@$(BIN)/python -m pytest -m chaos $(ARGS)

clean: ## Stop the local stack and remove what setup, tests and runs made in this folder
	@if [ -x $(BIN)/anabranch ]; then $(BIN)/anabranch down || true; fi
	@rm -rf .venv .tools .anabranch build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

lock: .tools/jgo.stamp ## For maintainers: resolve all packages and jars again, and write the lock files
	@$(COMPILE) --upgrade pyproject.toml --extra demo --group dev -o requirements.lock
	@$(COMPILE) -c requirements.lock pyproject.toml --extra demo --group build -o deploy/requirements.lock
	@$(COMPILE) --upgrade --group pyproject.toml:jars -o deploy/requirements-jgo.lock
	@$(COMPILE) --upgrade --group pyproject.toml:java -o deploy/requirements-java.lock
	@$(COMPILE) --upgrade --group pyproject.toml:uv -o deploy/requirements-uv.lock
	@.tools/jgo/bin/python deploy/jars.py lock
	@for set in $(APART); do $(COMPILE) --upgrade $$set.in -o $$set.lock; done
	@$(COMPILE) --upgrade --no-deps tests/partition/zoo.in -o tests/partition/zoo.lock
	@.tools/jgo/bin/python deploy/jars.py pin --lock bench/systems/flink/jars.lock --folder peers $(PEER_JARS)

# ---- what `setup` is made of -----------------------------------------------------------------------------------------

.tools/uv.stamp: deploy/requirements-uv.lock
	@python=""; for candidate in python3.11 python3; do \
		if $$candidate -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; \
		then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then echo "setup: Python 3.11 is needed and was not found: install python3.11" >&2; exit 1; fi; \
	echo "setup: uv, with $$($$python --version)"; \
	$$python -m venv --clear .tools/uv || { echo "setup: $$python cannot make an environment: install its venv module (on Debian: python3.11-venv)" >&2; exit 1; }
	@.tools/uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# pip's interpreter is the one to build on: asking for "3.11" might find another.
.venv/.packages: requirements.lock pyproject.toml .tools/uv.stamp
	@echo "setup: Python packages (about 1.2 GB the first time)"
	@[ -x $(BIN)/python ] || $(UV) venv --quiet --clear --python .tools/uv/bin/python .venv
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

.tools/jgo.stamp: deploy/requirements-jgo.lock .tools/uv.stamp
	@echo "setup: jgo, which brings jars without Maven"
	@$(UV) venv --quiet --clear --python .tools/uv/bin/python .tools/jgo
	@$(UV) pip sync --quiet --python .tools/jgo/bin/python --require-hashes $<
	@touch $@

$(JARS)/.complete: deploy/jars.lock deploy/jars.py .tools/jgo.stamp .venv/.packages
	@echo "setup: jars of the Kafka connector and broker"
	@.tools/jgo/bin/python deploy/jars.py fetch --to $(JARS)
	@touch $@

# Asked every time, for it takes no time and the machine's Java may have gone since.
java: .venv/.packages deploy/requirements-java.lock
	@if ! $(BIN)/python -m anabranch.flink_job.installation --java >/dev/null 2>&1; then \
		echo "setup: Java 17, for this machine has none"; \
		$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r deploy/requirements-java.lock; fi
