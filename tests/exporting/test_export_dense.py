"""Exported segmentation and boundary networks: what they answer, and that they are compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dla
from dla.cli import main
from dla.engines.dense_files import DenseFile
from dla.exporting import dense_targets, verify
from dla.exporting.dense_verify import DenseComparison
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import CHELSEA, COFFEE

pytestmark = pytest.mark.slow

SHORT = 64
MADE = [("onnx", True), ("openvino", True), ("openvino", False), ("pt2", False)]


def folder_of(path: Path, task: str, short_side: int | None) -> str:
    """A network with drawn weights whose answers differ from pixel to pixel."""
    torch.manual_seed(0)
    classes = 5 if task == "segment" else 1
    network = dla.create_model("shipped:tiny200", pretrained=True, task=task, num_classes=classes, down_ratio=4)
    labels = tuple(f"kind{k}" for k in range(classes))
    ours = {"task": task, "down_ratio": 4, "short_side": short_side}
    cfg = {"input_size": (3, 64, 64), "interpolation": "bilinear"}
    architecture = network.pretrained_cfg["architecture"]
    write_folder(path, network.state_dict(), ModelConfig(architecture, classes, labels, pretrained_cfg=cfg, dla=ours))
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("dense")
    return {task: folder_of(folder / task, task, SHORT) for task in ("segment", "edges")}


@pytest.fixture(scope="module")
def exported(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], Any]:
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SAMPLE_IMAGES", 8)
        return {
            (to, inside): dla.export(models["segment"], folder / f"{to}-{inside}", to, preprocessing=inside)
            for to, inside in MADE
        }


@pytest.mark.parametrize(("to", "inside"), MADE)
def test_the_report(to: str, inside: bool, exported: dict[tuple[str, bool], Any]) -> None:
    made = exported[to, inside]
    report = json.loads((made.folder / "report.json").read_text())
    assert report == json.loads(json.dumps(made.report.to_dict()))
    assert (report["task"], report["passed"], report["images"]) == ("segment", True, 8 + 3)
    assert report["same_pixels"] >= 0.999
    assert report["max_difference"] <= 1e-3
    assert (report["max_pixel_difference"] is None) == (not inside)
    assert "`labels`, uint8 (N, H, W)" in (made.folder / "README.md").read_text()


def ran(folder: Path, photo: Path, out: Path) -> tuple[np.ndarray, str]:
    """What use.py writes and prints, without dla."""
    env = {"PATH": os.environ["PATH"], "HOME": str(out.parent), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-P", str(folder / "use.py"), str(photo), str(out)]
    done = subprocess.run(words, env=env, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return np.asarray(Image.open(out)), done.stdout


@pytest.mark.parametrize(("to", "inside"), [("onnx", True), ("openvino", True)])
def test_use_py_answers_as_dla_does(
    to: str, inside: bool, exported: dict[tuple[str, bool], Any], models: dict[str, str], tmp_path: Path
) -> None:
    mask_HW, said = ran(exported[to, inside].folder, COFFEE, tmp_path / "mask.png")
    expected = dla.load(models["segment"], engine="torch")(str(COFFEE))
    assert mask_HW.shape == expected.mask.shape
    assert (mask_HW == expected.mask).mean() > 0.99  # from pixels within one level
    assert said.splitlines()[0].split()[-1] == expected.classes[0].class_id


def test_use_py_of_a_file_that_takes_pixels(exported: dict[tuple[str, bool], Any], tmp_path: Path) -> None:
    mask_HW, _ = ran(exported["pt2", False].folder, COFFEE, tmp_path / "mask.png")
    with Image.open(COFFEE) as photo:
        assert mask_HW.shape == (photo.height, photo.width)


def test_boundaries(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 7)
    made = dla.export(models["edges"], tmp_path / "out", "onnx")
    levels_HW, _ = ran(made.folder, CHELSEA, tmp_path / "edges.png")
    expected = dla.load(models["edges"], engine="torch")(str(CHELSEA)).probability
    assert np.abs(levels_HW.astype(int) - expected).mean() < 1
    assert expected.std() > 1


def test_a_file_that_answers_otherwise_is_not_kept(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 6)
    usual = dense_targets.DENSE_TARGETS["onnx"]

    def write(source: dense_targets.DenseSource, path: Path) -> None:
        state = dict(source.network.state)
        state["fc.0.bias"] = state["fc.0.bias"] + np.linspace(0, 9, len(state["fc.0.bias"]))
        usual.write(replace(source, network=replace(source.network, state=state)), path)

    monkeypatch.setitem(dense_targets.DENSE_TARGETS, "onnx", replace(usual, write=write))  # type: ignore[arg-type]
    assert main(["export", models["segment"], "-o", str(tmp_path / "out"), "--to", "onnx", "-q"]) == 4
    assert "the ONNX file does not compute the same as PyTorch" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["out.report.json"]


def test_what_passes() -> None:
    def passed(same: int, photo: int, difference: float, pixel: int = 0, precision: str = "fp32") -> bool:
        return DenseComparison(1, 1000, same, photo, [difference], [pixel]).passed(precision)

    assert passed(999, 995, 1e-3, 1)
    assert not passed(998, 1000, 0)
    assert not passed(1000, 994, 0)
    assert passed(999, 980, 1e-3, 1, "int8")
    assert not passed(998, 1000, 0, 0, "int8")
    assert not passed(1000, 979, 0, 0, "int8")
    assert not passed(1000, 1000, 1.1e-3)
    assert not passed(1000, 1000, float("nan"))
    assert not passed(1000, 1000, 0, 2)


def test_many_classes_are_whole_numbers() -> None:
    model = dla.create_model("dla34_half", task="segment", num_classes=300, down_ratio=8).eval()
    file = DenseFile("segment", 300, None, "bilinear")
    module = dense_targets.dense_to_program(model, *dla.Preprocessing().scale_shift(), file).module()
    for size in ((1, 64, 64), (2, 45, 99)):
        labels_NHW, logits_NKHW = module(torch.randint(0, 256, (*size, 3), dtype=torch.uint8))
        assert labels_NHW.dtype == torch.int64
        assert labels_NHW.shape == size
        assert torch.equal(labels_NHW, logits_NKHW.argmax(1))
