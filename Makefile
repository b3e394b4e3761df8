# One .venv for everything. `demo` installs what the demo needs; `test` and `check` add the rest.
PYTHON ?= python3
PIP = .venv/bin/pip install --quiet --disable-pip-version-check --no-deps
CPU = --extra-index-url https://download.pytorch.org/whl/cpu
HASHED = --require-hashes --only-binary :all:

# The releases of ONNX Runtime that the tests run exported files with, beside the newest. 1.17 needs NumPy below 2.
RUNTIMES = $(addprefix .venv/onnxruntime-, 1.17.3 1.20.1 1.24.4)
.venv/onnxruntime-1.17.3: NUMPY = numpy==1.26.4

.PHONY: demo test quick check fuzz requirements release

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

# Keeps the versions that are there and fit; make requirements UPGRADE=--upgrade, or UPGRADE="--upgrade-package numpy".
# Without PyTorch's index: make requirements TORCH="--find-links FOLDER", with its wheels in the folder.
TORCH ?= --torch-backend cpu
LOCK = .venv/tools/bin/uv pip compile --quiet pyproject.toml --group build -c requirements/torch.txt $(TORCH) \
	--python-version 3.11 --python-platform linux --generate-hashes --no-annotate \
	--no-emit-package torch --no-emit-package torchvision --custom-compile-command "make requirements"
requirements: .venv/tools
	$(LOCK) --all-extras $(UPGRADE) -o requirements/all.txt
	$(LOCK) --extra demo -c requirements/all.txt -o requirements/demo.txt
	$(LOCK) --extra serve -c requirements/all.txt -o requirements/serve.txt
	$(LOCK) -c requirements/all.txt -o requirements/package.txt

# The wheel, tried in an empty environment, and the list of what is in that environment (SBOM).
RELEASE = build/release/bin
release: .venv/tools
	rm -rf dist build/release
	$(PYTHON) -m venv build/release
	$(RELEASE)/pip install --quiet --no-deps -r requirements/torch.txt $(CPU)
	$(RELEASE)/pip install --quiet --no-deps $(HASHED) -r requirements/package.txt
	$(RELEASE)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	$(RELEASE)/pip install --quiet --no-deps dist/dla-*.whl
	cd build && release/bin/dla predict ../src/dla/shipped/photos/coffee.jpg
	.venv/tools/bin/cyclonedx-py environment $(RELEASE)/python --pyproject pyproject.toml --output-reproducible \
		--output-format JSON --output-file dist/dla-$$($(RELEASE)/python -c "import dla; print(dla.__version__)").cdx.json

.venv/tools:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet uv==0.13.9 cyclonedx-bom==7.5.0 || { rm -r $@; exit 1; }

.venv/bin/pip:
	$(PYTHON) -m venv .venv

# PyTorch and torchvision, which timm imports, come first and together, as CPU builds. They are apart because each
# platform has other builds of one version; everything else is a file with a known hash.
.venv/demo: .venv/bin/pip pyproject.toml requirements/torch.txt requirements/demo.txt
	$(PIP) -r requirements/torch.txt $(CPU)
	$(PIP) $(HASHED) -r requirements/demo.txt
	$(PIP) --no-build-isolation -e .
	touch $@

.venv/dev: .venv/demo requirements/all.txt
	$(PIP) $(HASHED) -r requirements/all.txt
	touch $@

.venv/onnxruntime-%: .venv/bin/pip
	rm -rf $@.part
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@.part onnxruntime==$* $(NUMPY)
	mv $@.part $@
