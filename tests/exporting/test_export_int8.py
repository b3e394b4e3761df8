"""The int8 model as a file of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dla
from dla.cli import main
from dla.engines.openvino import import_openvino
from dla.engines.quantized import Gate, parse_quantized, quantize
from dla.exporting import verify
from dla.images.decode import read_photo
from dla.inference.calibrate_int8 import CalibrationResult
from dla.inference.traced_model import open_traced
from dla.weights.model_folder import set_fields
from dla.weights.spec import shipped
from support.photos import CHELSEA, COFFEE

pytestmark = pytest.mark.slow

GATE = Gate(True, "agreement", 0.985, 0.97, 0.99, 600, None, None, ("avx2",))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The network that comes along at another temperature, with an int8 model made from a few parts of photos."""
    folder = tmp_path_factory.mktemp("model")
    for path in shipped("tiny200").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    set_fields(folder, temperature=1.7)
    network, opened = open_traced(str(folder))
    photo = Image.open(CHELSEA).convert("RGB")
    parts = [opened.preprocessing.pixels(photo.crop((x, 0, x + 200, 200))) for x in range(0, 200, 20)]
    (folder / "int8.zip").write_bytes(quantize(network, parts).with_gate(GATE).to_bytes())
    return str(folder)


@pytest.fixture
def _few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 6)


@pytest.mark.usefixtures("_few_images")
@pytest.mark.parametrize("inside", [True, False])
def test_the_file_answers_as_the_form_does(model: str, tmp_path: Path, inside: bool) -> None:
    made = dla.export(model, tmp_path / "out", "openvino", precision="int8", preprocessing=inside)
    assert (made.report.precision, made.report.passed, made.report.gates) == ("int8", True, (GATE.sentence(),))
    assert GATE.sentence() in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["reference"] == f"dla {dla.__version__} in int8"
    assert (tmp_path / "out" / "model.bin").stat().st_size < 0.6 * (Path(model) / "model.safetensors").stat().st_size
    classifier = dla.load(model, precision="int8")
    photo = read_photo(str(COFFEE)).image
    pixels_HW3 = classifier.preprocessing.pixels(photo)
    expected_K = classifier.probabilities(pixels_HW3[None])[0]
    compiled = import_openvino().Core().compile_model(str(made.file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found_K = compiled([np.asarray(photo) if inside else pixels_HW3][0][None])[0][0]
    # from the photo a pixel may be one level off, which 8 bits can make more of
    assert np.abs(found_K - expected_K).max() < (0.02 if inside else 1e-5)
    assert expected_K.max() < 0.999  # so the temperature counts


@pytest.mark.usefixtures("_few_images")
def test_its_script_says_what_predict_says(model: str, tmp_path: Path) -> None:
    dla.export(model, tmp_path / "out", "openvino", precision="int8", preprocessing=False)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, str(tmp_path / "out" / "use.py"), str(COFFEE)], env=env, cwd=tmp_path,
                          capture_output=True, text=True, check=True)  # fmt: skip
    best = dla.load(model, precision="int8").predict(str(COFFEE)).classes
    assert done.stdout.splitlines() == [f"{100 * c.probability:6.1f} %  {c.label}" for c in best]


@pytest.mark.usefixtures("_few_images")
def test_a_form_that_was_just_made_is_what_is_exported(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = parse_quantized((Path(model) / "int8.zip").read_bytes(), "int8.zip")
    given: list[str] = []

    def make(source: str, photos: str, **options: object) -> CalibrationResult:
        given.append(photos)
        return CalibrationResult(quantized, GATE, "here")

    monkeypatch.setattr("dla.inference.calibrate_int8.make_quantized", make)
    words = ["export", model, "-o", str(tmp_path / "out"), "--to", "openvino", "--precision", "int8"]
    assert main([*words, "--calibrate", "photos", "--no-preprocessing"]) == 0
    assert given == ["photos"]
    assert capsys.readouterr().err.splitlines() == [
        f"dla: int8: {GATE.sentence()}", "dla: int8: passed, and stored in here for --precision int8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--to", "onnx", "--precision", "int8"], 2, "int8 is exported for OpenVINO, not as onnx. Try --to openvino"),
        (["--to", "openvino", "--calibrate", "x"], 2, "--calibrate is for int8. Give --precision int8 too"),
        (["--to", "openvino", "--precision", "int8", "--calibrate", "gone"], 3, "gone does not exist"),
    ],
)
def test_refusals(words: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "shipped:tiny200", "-o", str(tmp_path / "out"), *words]) == code
    assert capsys.readouterr().err == f"dla: {said}\n"
    assert not list(tmp_path.iterdir())


def test_without_a_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((shipped("tiny200") / name).read_bytes())
    words = ["-o", str(tmp_path / "out"), "--to", "openvino", "--precision", "int8"]
    assert main(["export", str(tmp_path), *words]) == 3
    assert "has no int8 model. Make one from a few hundred photos" in capsys.readouterr().err
