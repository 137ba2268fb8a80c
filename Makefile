# `make demo` and `make test` need only python3 (3.11 or newer) and make; they build the virtual environment themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test variation slow mutants check lint types wheel docs lock clean

demo: $(VENV)/.demo
	$(BIN)/byol demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"  # a core each, and whole files

# What must not hang on the machine: old CPU kernels, two threads, a locale without UTF-8. CI tries what computes;
# TESTS=tests runs all. Two processes of two threads do not fight for two cores where idle threads sleep.
COMPUTES := any_modality loop outcome probe recipe run source step trainer whitened
TESTS ?= tests/method tests/models $(COMPUTES:%=tests/train/test_%.py) tests/test_machine.py
variation: $(VENV)/.dev
	LC_ALL=C ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 OMP_WAIT_POLICY=PASSIVE \
	  $(BIN)/python -m pytest -q -n 2 -m "not slow" $(TESTS)

# PART=2/3 takes the second third of the slow tests, or of the wrong changes.
PART ?= 1/1
slow: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow --part $(PART)

# Wrong changes to the package, one at a time, that the tests must notice.
mutants: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --part $(PART)

# What CI runs. The slow tests take half an hour on two old cores: every day another half, and a quarter of the mutants.
DAY := $(shell date +%j)
check: lint types test variation wheel docs
	$(MAKE) slow PART=$$(expr $(DAY) % 2 + 1)/2
	$(MAKE) mutants PART=$$(expr $(DAY) % 4 + 1)/4

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

wheel: $(VENV)/.dev  ## build the wheel and import it from elsewhere, without the source tree
	rm -rf dist build/wheel && $(BIN)/python -m build --wheel --outdir dist . >/dev/null
	$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	cd build/wheel && PYTHONPATH=. $(abspath $(BIN))/python -c "import byol, sys; assert 'build/wheel' in byol.__file__; print('wheel', byol.__version__)" \
	  && PYTHONPATH=. $(abspath $(BIN))/python -m byol train --help >/dev/null

docs: $(VENV)/.dev  ## the documentation as pages in build/site; a broken link or a page without a place is a failure
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

$(VENV)/.python:
	@$(PYTHON) -c "import sys; sys.exit('byol needs Python 3.11 or newer, this is ' + sys.version.split()[0]) if sys.version_info < (3, 11) else 0"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml
	@echo "Installing byol with torch into $(VENV); the first time this takes a few minutes."
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml
	@echo "Installing byol, torch and the test tools into $(VENV); the first time this takes a few minutes."
	$(if $(LOCKED),$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-dev.lock)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

# `make test LOCKED=1` in a fresh checkout installs exactly these files, by their hashes. Versions that are locked stay
# as they are; `make lock UPGRADE=--upgrade` takes the newest. None is younger than a week: a stolen account is mostly
# noticed by then. The checksum tells which dependencies the file was made for; a test compares.
lock: $(VENV)/.python
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --python-version 3.11 \
	  --extra dev --exclude-newer "7 days" $(UPGRADE) pyproject.toml --output-file requirements-dev.lock
	(echo "# Exact versions with hashes for every platform; made by: make lock"; $(BIN)/python -c "$$CHECKSUM"; \
	  cat requirements-dev.lock) > requirements-dev.lock.new && mv requirements-dev.lock.new requirements-dev.lock

define CHECKSUM
import hashlib, json, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
asked = [project[key] for key in ("requires-python", "dependencies", "optional-dependencies")]
print("# for dependencies with the checksum", hashlib.sha256(json.dumps(asked).encode()).hexdigest())
endef
export CHECKSUM

clean:
	rm -rf $(VENV) build dist
