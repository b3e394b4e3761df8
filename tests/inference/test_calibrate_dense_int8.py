"""int8 models of dense networks: what the gate measures, lets through, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

import dla
from dla.engines.quantized import Gate, QuantizedModel, parse_quantized
from dla.inference import calibrate_dense_int8
from dla.inference.calibrate_dense_int8 import make_dense_quantized
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import CHELSEA

CLASSES = ("dark", "middle", "bright")
PHOTOS = 4


@pytest.mark.parametrize("kind", ["miou", "ods"])
def test_a_gate_is_stored_and_told(kind: str) -> None:
    low, high = (None, None) if kind == "ods" else (0.001, 0.004)
    gate = Gate(True, kind, 0.0031, low, high, 120, 0.712, 0.7089, ("avx2",))
    stored = QuantizedModel(b"x", b"y", "c", {"accuracy_control": False}, (gate,))
    assert parse_quantized(stored.to_bytes(), "int8.zip").gates == (gate,)
    said = {
        "miou": "mIoU 70.9 % in int8, 71.2 % in fp32: a loss of 0.31 points (95 % interval 0.10 to 0.40)",
        "ods": "ODS 0.7089 in int8, 0.7120 in fp32: a loss of 0.0031",
    }[kind]
    assert gate.sentence() == f"{said}, on 120 photos, on a CPU with avx2"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = dla.create_model("shipped:tiny200", pretrained=True, task="segment", num_classes=3, down_ratio=8)
    ours = {"task": "segment", "down_ratio": 8, "short_side": 64}
    architecture = network.pretrained_cfg["architecture"]
    cfg = {"interpolation": "bilinear"}
    write_folder(
        tmp_path / "model", network.state_dict(), ModelConfig(architecture, 3, CLASSES, pretrained_cfg=cfg, dla=ours)
    )
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Photos and masks of three levels of brightness."""
    photo = Image.open(CHELSEA).convert("RGB")
    for number in range(2 * PHOTOS):
        split = tmp_path / "data" / ("train" if number % 2 else "val")
        for name in ("images", "masks"):
            (split / name).mkdir(parents=True, exist_ok=True)
        part = photo.crop((30 * number, 10, 30 * number + 96, 82))
        part.save(split / "images" / f"{number}.png")
        Image.fromarray((np.asarray(part.convert("L")) // 86).astype(np.uint8)).save(split / "masks" / f"{number}.png")
    (tmp_path / "data" / "classes.json").write_text(json.dumps({"classes": CLASSES, "ignore_index": 255}))
    return tmp_path / "data"


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_dense_int8, "LEAST_CALIBRATION", PHOTOS)
    monkeypatch.setattr(calibrate_dense_int8, "GATE_PHOTOS", {"segment": PHOTOS, "edges": PHOTOS})


@pytest.mark.slow
@pytest.mark.usefixtures("_few")
def test_made_measured_and_stored(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_dense_int8, "MAX_DROP", -1)
    with pytest.raises(dla.CheckError, match="did not pass: mIoU .* Nothing is stored"):
        make_dense_quantized(str(model), data)
    assert not (model / "int8.zip").exists()
    monkeypatch.setattr(calibrate_dense_int8, "MAX_DROP", 1)
    made = make_dense_quantized(str(model), data)
    assert made.stored_in == str(model / "int8.zip")
    for precision, measured in (("fp32", made.gate.fp32), ("int8", made.gate.int8)):
        segment = dla.load(str(model), precision=precision, engine="openvino")
        names = sorted((data / "val" / "images").iterdir())
        answers = np.concatenate([segment(str(name)).mask.ravel() for name in names])
        masks = [np.asarray(Image.open(data / "val" / "masks" / name.name)).ravel() for name in names]
        assert measured == pytest.approx(jaccard_score(np.concatenate(masks), answers, average="macro"), abs=1e-6)


@pytest.mark.slow
def test_what_is_refused(model: Path, data: Path) -> None:
    with pytest.raises(dla.UsageError, match="4 photos in train and 4 in val. At least 20 to calibrate with, and 100"):
        make_dense_quantized(str(model), data)
    (data / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore_index": 255}))
    with pytest.raises(dla.UsageError, match="the classes of .* are a, b, c, those of .* dark, middle, bright"):
        make_dense_quantized(str(model), data)
    with pytest.raises(dla.UsageError, match="is a classification network. Use: dla predict"):
        make_dense_quantized("shipped:tiny200", data)
