"""`dla export`: what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import get_args

import pytest

from dla.cli import main
from dla.exporting import verify
from dla.exporting.targets import TARGETS
from dla.options import TargetName

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _few_images_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 6)
    monkeypatch.chdir(tmp_path)


def test_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "shipped:tiny200", "-o", "out", "--to", "onnx", "--no-preprocessing"]) == 0
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    difference = json.loads(Path("out/report.json").read_text())["max_difference"]
    assert first == ("out/model.onnx  compared on 8 images at batch size 1, 3, 8: same top-1 class for 8, largest "
                     f"difference {difference:.0e}")  # fmt: skip
    assert second == "out/use.py      classifies a photo without dla: python out/use.py PHOTO"
    assert err == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["dla61", "-o", "out", "--to", "onnx"], 2, 'no network is called "dla61"'),
        (["shipped:tiny200", "-o", "out", "--to", "tflite"], 2, "to is tflite. Allowed: onnx, openvino, pt2"),
        (["shipped:tiny200", "-o", "out"], 2, "--to is missing. Allowed: onnx, openvino, pt2"),
        (["shipped:tiny200", "--to", "onnx"], 2, "--output is missing. Give a new or empty folder"),
        (["shipped:tiny200", "-o", "full", "--to", "onnx"], 2, "full exists and is not empty, so it is left alone"),
        (
            ["shipped:tiny200", "-o", "out", "--to", "onnx", "--photos", "gone"],
            2,
            "gone has no photos to check with",
        ),
        (["gone.pth", "-o", "out", "--to", "onnx"], 3, "gone.pth does not exist"),
    ],
)
def test_refusals(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("full/mine").mkdir(parents=True)
    assert main(["export", *words]) == code
    out, err = capsys.readouterr()
    assert said in err
    assert (out, len(err.splitlines())) == ("", 1)
    assert os.listdir() == ["full"]


def test_the_forms_are_those_that_there_are() -> None:
    assert tuple(TARGETS) == get_args(TargetName)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "openvino"], "--to openvino needs onnx: pip install '.[export]', or use --no-preprocessing"),
        (["--to", "onnx"], "--to onnx needs onnxruntime and onnx: pip install '.[export]'"),
        (
            ["--to", "openvino", "--precision", "int8", "--calibrate", "photos"],
            "--to openvino needs nncf and onnx: pip install '.[export]'",
        ),
    ],
)
def test_every_missing_package_is_named_before_any_work(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxruntime", "nncf"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delattr("dla.exporting.export.open_files")
    assert main(["export", "shipped:tiny200", "-o", "out", *words]) == 3
    assert capsys.readouterr() == ("", f"dla: {said}\n")
    assert not Path("out").exists()


@pytest.mark.slow
def test_without_preprocessing_onnx_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert main(["export", "shipped:tiny200", "-o", "out", "--to", "openvino", "--no-preprocessing"]) == 0
