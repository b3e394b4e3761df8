# One .venv for everything. `demo` installs what the demo needs; `test` and `check` add the rest.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
CPU = --extra-index-url https://download.pytorch.org/whl/cpu

.PHONY: demo test quick check

demo: .venv/demo
	.venv/bin/python examples/demo.py build/demo

quick: .venv/dev
	.venv/bin/python -m pytest -q -n auto --dist loadfile -m "not slow"

test: .venv/dev
	.venv/bin/python -m pytest -q -n auto --dist loadfile

check: .venv/dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python docs/generate.py --check

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# PyTorch and torchvision, which timm imports, come first and together, as CPU builds: what comes after them then
# downloads no CUDA. Their dependencies come with it, from the usual index.
.venv/demo: .venv/bin/pip pyproject.toml constraints.txt
	$(PIP) --no-deps torch torchvision $(CPU)
	$(PIP) -e '.[demo]'
	touch $@

.venv/dev: .venv/demo
	$(PIP) -e '.[bench,demo,engines,export,train,dev]'
	touch $@
