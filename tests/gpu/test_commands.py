"""`dla.load` and `dla.train` on a GPU, as users call them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dla
from dla.training.events import StepEvent, TrainerCallback
from support.flat_photos import PLAIN

pytestmark = pytest.mark.gpu
USUAL = {"model": "dla46_c", "epochs": 2, "batch_size": 4, "lr": 0.01, "input.sizes": {0: 32}, "input.val_size": 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16, mixed, averaged": {
        "compute.autocast": "bf16", "augment.mixup": 0.4, "augment.brightness": 0.3, "augment.erase": 0.3,
        "average.decay": 0.9, "optimizer.name": "adamw", "lr": 0.002,
    },
    "fp16, in parts": {"compute.autocast": "fp16", "optimizer.accumulate": 2, "optimizer.clip_norm": 1.0},
    "checkpointing, no channels_last": {"compute.checkpointing": True, "compute.channels_last": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise around a colour."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for k, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (60, 70, 3)) + 100 * np.eye(3)[k]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_predictions_are_those_of_the_cpu(photos: Path, device: str) -> None:
    paths = sorted(map(str, photos.rglob("*.png")))
    on_gpu, on_cpu = dla.load(device=device), dla.load(device="cpu", engine="torch")
    assert on_gpu.engine.name == "PyTorch on cuda"
    for found, wanted in zip(on_gpu.predict(paths, topk=200), on_cpu.predict(paths, topk=200), strict=True):
        expected = {c.class_id: c.probability for c in wanted.classes}
        assert {c.class_id: c.probability for c in found.classes} == pytest.approx(expected, abs=1e-4)
        assert found.classes[0].class_id == wanted.classes[0].class_id


def test_single_photos_get_the_same_answer_each_time(photos: Path) -> None:
    """The first goes kernel by kernel, the second is captured, the others are replayed."""
    classifier, path = dla.load(device="cuda"), str(next(photos.rglob("*.png")))
    first, *others = (classifier.predict(path, topk=200) for _ in range(4))
    expected = {c.class_id: c.probability for c in first.classes}
    for other in others:
        assert {c.class_id: c.probability for c in other.classes} == pytest.approx(expected, abs=1e-5)


def test_bf16_is_near(photos: Path) -> None:
    path = str(next(photos.rglob("*.png")))
    exact, rough = (dla.load(device="cuda", precision=p).predict(path) for p in ("fp32", "bf16"))
    assert rough.classes[0].probability == pytest.approx(exact.classes[0].probability, abs=0.05)


def test_features_are_those_of_the_cpu(photos: Path) -> None:
    paths = sorted(map(str, photos.rglob("*.png")))[:5]
    on_gpu, on_cpu = (
        [np.asarray(f.values) for f in dla.load(device=device, engine="torch").features(paths, at="level4")]
        for device in ("cuda", "cpu")
    )
    for found, wanted in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())


class StoppedError(Exception):
    pass


class Stop(TrainerCallback):
    """Breaks a run off after so many steps."""

    def __init__(self, count: int) -> None:
        self.left = count

    def on_step(self, step: StepEvent) -> None:
        self.left -= 1
        if self.left == 0:
            raise StoppedError


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_that_was_stopped_ends_in_the_bits_of_a_whole_one(photos: Path, tmp_path: Path, name: str) -> None:
    settings = USUAL | SETTINGS[name]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    dla.train(photos, PLAIN, output=whole, device="cuda", settings=settings, save_every=0)
    with pytest.raises(StoppedError):
        dla.train(photos, PLAIN, output=stopped, device="cuda", settings=settings, save_every=0, callback=Stop(6))
    dla.train(photos, PLAIN, output=stopped, device="cuda", settings=settings, save_every=0)
    assert json.loads((whole / "run.json").read_text())["machine"]["device"] == "cuda"
    for file in ("best/model.safetensors", "best/config.json"):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()
    losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
              for run in (whole, stopped)]  # fmt: skip
    assert losses[0] == losses[1]
    assert np.isfinite(losses[0]).all()
    assert dla.load(str(whole / "best"), device="cpu", engine="torch").predict(str(next(photos.rglob("*.png")))).classes


def test_a_run_leaves_the_flags_of_pytorch_as_they_were(photos: Path, tmp_path: Path) -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.cuda.get_rng_state().tolist()
    dla.train(photos, PLAIN, output=tmp_path / "run", device="cuda", settings=USUAL | {"epochs": 1})
    assert before == (cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, torch.cuda.get_rng_state().tolist())
