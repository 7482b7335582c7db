# make demo   set everything up, train a small GPT, export it, check it, run it without torch; ARCH=gpt2, llama, nanochat
# make test   set everything up and run the tests
# make docs   README and docs/ as a site in build/site
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
SECONDS ?= 90
ARCH ?= gpt2

.PHONY: demo test lint docs peers clean

$(VENV)/.done: pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gptexport needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt --upgrade pip # older ones know no --group
	$(BIN)/python -m pip install --quiet -c constraints.txt -e './runtime[cpu,openvino,openvino-plugin,rtx]' -e '.[cpu,gguf,hf,openvino,rtx,score]' --group dev
	# TensorRT 11's bindings without its libraries: tests/engine/test_conformance.py reads their signatures
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt tensorrt-cu13-bindings
	@touch $@

demo: $(VENV)/.done
	$(BIN)/python -m scripts.demo.train $(DEMO) --seconds $(SECONDS) --arch $(ARCH)
	$(BIN)/gptexport onnx "$$(cat $(DEMO)/checkpoint.txt)" -o $(DEMO)/gpt --tokenizer bytes --force
	$(BIN)/gptexport parity $(DEMO)/gpt --against "$$(cat $(DEMO)/checkpoint.txt)" --tokens $(DEMO)/val.bin
	$(BIN)/python -m scripts.demo.sample $(DEMO)/gpt

test: $(VENV)/.done
	$(BIN)/python -m pytest -n 2 -m 'not slow and not gpu'

lint: $(VENV)/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) docs

# README and docs/ as a site in build/site; a link to nowhere fails
docs: $(VENV)/.done
	rm -rf build/pages && mkdir -p build/pages
	cp -R README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# every runtime that scripts.bench.cpu compares with, away from the others' pins
peers: .venv-peers/.done
.venv-peers/.done: pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt --upgrade pip
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt -e './runtime[cpu,openvino,openvino-plugin]' -e . --group peers
	@touch $@

clean:
	rm -rf $(VENV) .venv-peers $(DEMO) build dist runtime/build
