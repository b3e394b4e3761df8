# One .venv for everything. `demo` installs what the demo needs; `test` and `check` add the rest.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH = $(shell grep '^torch==' constraints.txt) --extra-index-url https://download.pytorch.org/whl/cpu

.PHONY: demo test quick check

demo: .venv/demo
	.venv/bin/python examples/demo.py build/demo

quick: .venv/dev
	.venv/bin/python -m pytest -q -n auto --dist loadfile -m "not slow"

# The usual order, by the number of tests, would leave single tests of half a minute for the end, on one core.
test: .venv/dev
	.venv/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

check: .venv/dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python docs/generate.py --check

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# PyTorch comes first and alone, as a CPU build: what comes after it then finds it there and downloads no CUDA.
.venv/demo: .venv/bin/pip pyproject.toml constraints.txt
	$(PIP) $(TORCH)
	$(PIP) -e '.[demo]'
	touch $@

.venv/dev: .venv/demo
	$(PIP) -e '.[bench,demo,engines,export,train,dev]'
	touch $@
