# Two commands, each doing its own set-up: `make demo` and `make test`. `make slow` runs the long tests, `make test-gpu` those that need a GPU; `make tensorboard` shows trainings; `make check` is what CI runs.
PYTHON ?= python3
BIN := .venv/bin

# A run has a dozen processes and more, each with some 2,500 modules to import. Many container images forbid Python
# to keep what it compiled of them, which costs each process 5 s and more (AMD EPYC, 2026-11-25); what is kept lies in
# .venv and __pycache__.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test slow test-gpu bench-gpu tensorboard check setup
.DELETE_ON_ERROR:

demo: setup
	$(BIN)/dualtoken run recipes/scenes.yaml

# On CPUs, whatever the machine has: stored bytes are compared, and a GPU rounds in other ways.
test slow: export CUDA_VISIBLE_DEVICES :=

test: setup
	$(BIN)/python -m pytest

# One after the other: each has the machine to itself.
slow: setup
	$(BIN)/python -m pytest --numprocesses=0 -m slow

# Needs a GPU; one process, which has it to itself.
test-gpu: setup
	$(BIN)/python -m pytest --numprocesses=0 -m gpu

# Under eight minutes on one GPU; results in bench-gpu/gpu.json, after each step.
bench-gpu: setup
	$(BIN)/python -m benchmarks.gpu --out bench-gpu

# The newest run of each training below DATA, a recipe's root.
DATA ?= data
tensorboard: setup
	runs=$$(for kind in teacher tokenizer mllm; do \
		newest=$$(ls -td $(DATA)/models/$$kind/*/logs/tensorboard 2>/dev/null | head -n 1); \
		test -z "$$newest" || echo "$$kind:$$newest"; \
	done | paste -sd,); \
	test -n "$$runs" || { echo "no training has logs below $(DATA)/models: run one, or set DATA to its root" >&2; exit 2; }; \
	$(BIN)/tensorboard --logdir_spec "$$runs"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(MAKE) test

setup: .venv/installed

# uv installs in a fifth of pip's time. It reads no setting of pip's: those of the environment are handed on,
# and where it still finds no package, pip does it.
.venv/installed: export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
.venv/installed: export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
.venv/installed: export UV_INDEX ?= $(PIP_EXTRA_INDEX_URL)
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt uv \
		&& $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]' \
		|| $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
