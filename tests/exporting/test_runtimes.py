"""Exported ONNX files in old releases of ONNX Runtime, each in a folder of its own that `make test` creates."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import dla
from dla.engines.onnx import PREPARED
from dla.engines.onnx_builder import IR_VERSION, OLDEST_RUNTIME, OPSET
from dla.exporting import verify
from dla.types import Array
from support.photos import CHELSEA, COFFEE
from support.small_models import write_small

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VERSIONS = re.findall(
    r"[\d.]+",
    (ROOT / "Makefile").read_text().partition("RUNTIMES = $(addprefix .venv/onnxruntime-,")[2].partition(")")[0],
)
NETWORKS = "dla34", "dla60x", "shipped:tiny200"
SIZES = (97, 131), (60, 200)  # (width, height): Pillow resizes the rows of the one first, the columns of the other
RUN = """\
import runpy, sys
import numpy, onnxruntime

folder, photo = sys.argv[1:]
batches = dict(numpy.load(f"{folder}/batches.npz"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
answers = {}
for number in range(3):
    path = f"{folder}/{number}/with_pixels.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for name, batch in batches.items():
        answers[f"{number} {name} pixels"], answers[f"{number} {name}"] = session.run(
            ["prepared", "probabilities"], {"pixels": batch}
        )
numpy.savez(f"{folder}/{onnxruntime.__version__}.npz", **answers)
sys.argv = ["use.py", photo]
runpy.run_path(f"{folder}/2/use.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder with the exported networks, by number, and the names of their models."""
    folder = tmp_path_factory.mktemp("runtimes")
    models = [
        name if ":" in name else str(write_small(folder / name, ["a", "b", "c", "d"], architecture=name))
        for name in NETWORKS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SAMPLE_IMAGES", 3)
        patch.setattr(verify, "AGREEMENT", 0)  # with drawn weights one level of a pixel can decide between two classes
        for number, name in enumerate(models):
            file = dla.export(name, folder / str(number), "onnx").file
            model = onnx.load(file)
            model.graph.output.append(onnx.helper.make_tensor_value_info(PREPARED, onnx.TensorProto.UINT8, None))
            onnx.save(model, Path(file).parent / "with_pixels.onnx")
    np.savez(folder / "batches.npz", **{str(size[0]): batch(size) for size in SIZES})  # type: ignore[arg-type]
    return folder, models


def batch(size: tuple[int, int]) -> Array:
    photo = Image.open(CHELSEA).convert("RGB")
    return np.stack([np.asarray(photo.resize(size).rotate(10 * i)) for i in range(2)])


def installed(version: str) -> dict[str, str]:
    folder = ROOT / ".venv" / f"onnxruntime-{version}"
    if not folder.is_dir():
        pytest.skip(f"ONNX Runtime {version} is not installed: run make .venv/onnxruntime-{version}")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("version", [*VERSIONS, "the environment's"])
def test_the_answers_are_those_of_pytorch(version: str, exported: tuple[Path, list[str]]) -> None:
    folder, models = exported
    env = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"} | (installed(version) if version in VERSIONS else {})
    words = [sys.executable, "-c", RUN, str(folder), str(COFFEE)]
    done = subprocess.run(words, env=env, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    version = version if version in VERSIONS else onnxruntime_version()
    answers = np.load(folder / f"{version}.npz")
    for number, name in enumerate(models):
        classifier = dla.load(name, engine="torch")
        for size in SIZES:
            key = f"{number} {size[0]}"
            pixels = np.stack([classifier.preprocessing.pixels(Image.fromarray(photo)) for photo in batch(size)])
            assert np.abs(answers[f"{key} pixels"].astype(int) - pixels).max() <= 1
            expected = classifier.probabilities(answers[f"{key} pixels"])
            torch.testing.assert_close(torch.from_numpy(answers[key]), torch.from_numpy(expected), rtol=0, atol=1e-5)
            assert np.ptp(expected, axis=1).min() > 0.1  # the network tells the classes apart
    labels = [line.partition(" %  ")[2] for line in done.stdout.splitlines()]
    assert labels == [c.label for c in dla.load(engine="torch").predict(COFFEE).classes]


def onnxruntime_version() -> str:
    import onnxruntime

    return onnxruntime.__version__


def test_the_oldest_runtime_is_the_one_that_is_promised(exported: tuple[Path, list[str]]) -> None:
    """ONNX Runtime 1.17 is the first with IR 9 and opset 20: https://onnxruntime.ai/docs/reference/compatibility.html"""
    assert (OPSET, IR_VERSION) == (18, 9)
    assert VERSIONS[0].startswith(f"{OLDEST_RUNTIME}.")
    assert f"| runs in | ONNX Runtime {OLDEST_RUNTIME} or newer |" in (exported[0] / "0" / "README.md").read_text()
