# One .venv for everything. `demo` installs what the demo needs; `test` and `check` add the rest.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
CPU = --extra-index-url https://download.pytorch.org/whl/cpu

# The releases of ONNX Runtime that the tests run exported files with, beside the newest. 1.17 needs NumPy below 2.
RUNTIMES = $(addprefix .venv/onnxruntime-, 1.17.3 1.20.1 1.24.4)
.venv/onnxruntime-1.17.3: NUMPY = numpy==1.26.4

.PHONY: demo test quick check fuzz

demo: .venv/demo
	.venv/bin/python examples/demo.py build/demo

quick: .venv/dev
	.venv/bin/python -m pytest -q -n auto --dist loadfile -m "not slow"

# The usual order, by the number of tests, would leave single tests of half a minute for the end, on one core.
test: .venv/dev $(RUNTIMES)
	.venv/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

# Damaged files of every kind: make fuzz SEED=1 TRIES=20000
SEED ?= 0
TRIES ?= 1000
fuzz: .venv/dev
	PYTHONPATH=tests .venv/bin/python -m attacks.fuzz --seed $(SEED) --tries $(TRIES)

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

.venv/onnxruntime-%: .venv/bin/pip
	rm -rf $@.part
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part onnxruntime==$* $(NUMPY)
	mv $@.part $@
