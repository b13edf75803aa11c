# make       the environment (tools/venv)
# make demo  the environment, then egs2/mini_st from data to scores
# make test  the environment, then the whole test suite
# make lint  ruff and shellcheck
STAMP := tools/venv/.stamp
BIN := tools/venv/bin
SHELL_FILES = $(shell git ls-files --cached --others --exclude-standard -- '*.sh' .ci/run egs2/TEMPLATE/llmst1/utils | grep -v '\.pl$$' | xargs -I{} sh -c 'test -L {} || echo {}')

.PHONY: all demo test lint constraints clean
all: $(STAMP)

$(STAMP): setup.py $(wildcard espnet_llmst/bin/*.py) tools/constraints.txt tools/overrides.txt tools/setup_venv.sh
	tools/setup_venv.sh

demo: $(STAMP)
	cd egs2/mini_st/llmst1 && ./run.sh --stage 1 --stop_stage 8

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck -x $(SHELL_FILES)

# Renews the pins from what the index offers today.
constraints: $(STAMP)
	echo uv > tools/requirements.tmp
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --upgrade \
	    --all-extras --override tools/overrides.txt setup.py tools/requirements.tmp -o tools/constraints.tmp
	mv tools/constraints.tmp tools/constraints.txt
	rm tools/requirements.tmp

clean:
	rm -rf tools/venv
