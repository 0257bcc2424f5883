# make demo and make test do all the set-up, in a virtual environment of their own (.venv).
#
#   make demo                       see it work; needs no torch
#   make test                       lint, types, tests, perplexity gate; installs torch and transformers as oracles
#   make test PIP_ARGS='...'        options for pip install, for example the CPU build of torch:
#                                   PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
#   make docs | lint | sanitize | clean

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard bitconv/*.pyx bitconv/*.pxi bitconv/csrc/*.h)
SANITIZED := build/sanitize
MAX_PPL ?= 56

.DELETE_ON_ERROR:
.PHONY: help demo test lint docs gate sanitize clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

# Each stamp stands for an installation and is renewed when what it was made of changes.
$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/created $(SOURCES)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e .
	touch $@

$(VENV)/test-installed: $(VENV)/created $(SOURCES)
	$(BIN)/python -m pip install -q $(PIP_ARGS) -e ".[test]"
	touch $(VENV)/installed $@

demo: $(VENV)/installed
	$(BIN)/bitconv demo

test: lint gate
	$(BIN)/python -m pytest

lint: $(VENV)/test-installed
	$(BIN)/ruff check .
	$(BIN)/mypy

# The bundled checkpoint must predict its held-out text as well as it did when it was trained.
gate: $(VENV)/test-installed
	mkdir -p build
	$(BIN)/bitconv convert models/tiny -o build/tiny-i2_s.gguf --overwrite
	$(BIN)/bitconv perplexity build/tiny-i2_s.gguf -f models/tiny/heldout.txt --max-ppl $(MAX_PPL)

docs: $(VENV)/installed
	$(BIN)/python tools/gen_cli_docs.py
	$(BIN)/python tools/gen_tile_table.py

# Kernel, format and fuzz tests with the extension built under AddressSanitizer and UBSan, in a copy of the
# tree, so that the ordinary build is left alone. Python itself leaks by design: leak checking is off.
sanitize: $(VENV)/test-installed
	rm -rf $(SANITIZED)
	mkdir -p $(SANITIZED)
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(SANITIZED)
	cd $(SANITIZED) && BITCONV_SANITIZE=1 $(CURDIR)/$(BIN)/python -m pip install -q $(PIP_ARGS) cython setuptools
	cd $(SANITIZED) && BITCONV_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	BITCONV_SHARED="$$($(BIN)/python -c 'from tests.paths import SHARED; print(SHARED or "/nonexistent")')" && \
	  cd $(SANITIZED) && export BITCONV_SHARED && ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	  LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so)" \
	  $(CURDIR)/$(BIN)/python -m pytest -p no:cacheprovider tests/test_kernels*.py tests/test_pack_kernels.py tests/test_text.py tests/test_gguf*.py tests/test_hostile.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bitconv/_kernels.c bitconv/_text.c bitconv/*.so
	rm -rf $(VENV)
