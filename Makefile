# Two commands: `make demo` runs the main job on the data that comes with the package and then
# serves a small model on four processes, `make test` runs the tests. Each makes its own virtual
# environment with pinned versions.
PYTHON ?= python3
NEEDED = "equipoise needs Python 3.11 or newer; say which, as in make PYTHON=python3.11"
CHECK_PYTHON = @$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit($(NEEDED))'
RUN := .venv/bin
DEV := .venv-dev/bin
ENGINES := .venv-engines/bin
ASCEND := 0.13.0 0.18.0 0.23.0.post1 0.30.0rc2
VLLM := 0.33.0

.PHONY: demo test test-long test-engines site lint types contracts check format clean

demo: .venv/ready
	PATH="$(CURDIR)/$(RUN):$$PATH" sh examples/demo.sh

# Bytecode is kept whatever the environment says: both workers read the tests, and many tests start the command.
test: export PYTHONDONTWRITEBYTECODE :=
test: .venv-dev/ready
	$(DEV)/python -m pytest -n 2 --dist loadfile

test-long: .venv-dev/ready
	$(DEV)/python -m pytest -m long

# With the engines' own packages, which are large; where one is missing, its tests fail. A process for each engine: two of
# them in one would register the same model configurations. vLLM's tests run again with a second release.
test-engines: .venv-engines/ready $(ASCEND:%=.venv-engines/vllm-ascend/%/ready) $(VLLM:%=.venv-engines/vllm/%/ready)
	set -e; for tests in $(dir $(wildcard tests/integration/*/__init__.py)); do $(ENGINES)/python -m pytest -m engines $$tests; done
	set -e; for release in $(VLLM); do EQUIPOISE_VLLM_RELEASE=$$release VLLM_TARGET_DEVICE=cpu \
	    PYTHONPATH=$(CURDIR)/.venv-engines/vllm/$$release $(ENGINES)/python -m pytest -m engines tests/integration/vllm; done

check: lint types contracts

# The documentation as a folder of pages, open site/index.html; any warning fails.
site: .venv-docs/ready
	rm -rf site
	.venv-docs/bin/python -m sphinx -q -W --keep-going -b html docs site
	rm -rf site/.doctrees site/.buildinfo

lint: .venv-dev/ready
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .

types: .venv-dev/ready
	$(DEV)/mypy

contracts: .venv-dev/ready
	$(DEV)/lint-imports

format: .venv-dev/ready
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

clean:
	rm -rf .venv .venv-dev .venv-docs .venv-engines build dist demo-output site

.venv/ready: requirements/build.txt requirements/run.txt requirements/serve.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv
	$(RUN)/pip install --quiet --disable-pip-version-check -r requirements/build.txt -r requirements/serve.txt
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv-dev/ready: requirements/build.txt requirements/run.txt requirements/serve.txt requirements/dev.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-dev
	$(DEV)/pip install --quiet --disable-pip-version-check -r requirements/build.txt -r requirements/dev.txt
	$(DEV)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

.venv-docs/ready: requirements/build.txt requirements/docs.txt pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -r requirements/build.txt -r requirements/docs.txt
	.venv-docs/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# Nothing but what is listed: vLLM would bring torchvision, torchaudio and torchcodec, which it can do without,
# and SGLang a build of torch for GPUs.
.venv-engines/ready: requirements/build.txt requirements/engines.txt pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv .venv-engines
	$(ENGINES)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/build.txt -r requirements/engines.txt
	$(ENGINES)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# A folder for each release of vllm-ascend. Their kernels are neither built nor used.
.venv-engines/vllm-ascend/%/ready: .venv-engines/ready requirements/ascend.txt
	$(ENGINES)/pip install --quiet --disable-pip-version-check --no-deps -r requirements/ascend.txt
	COMPILE_CUSTOM_KERNELS=0 SOC_VERSION=ascend910b1 $(ENGINES)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target $(@D) vllm-ascend==$*
	touch $@

# A release of vLLM that nobody has built for CPUs: its Python files, over the binaries of the one that is built.
.venv-engines/vllm/%/ready: .venv-engines/ready
	$(ENGINES)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) vllm==$*
	find $(@D) -name '*.so' -delete
	cp $(dir $(ENGINES))lib/python3*/site-packages/vllm/*.so $(@D)/vllm/
	touch $@
