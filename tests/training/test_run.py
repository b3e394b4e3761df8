"""`dla train` as a whole: a tiny run learns, stops and goes on, and ends in a folder that predicts."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import dla
from dla.cli import main
from dla.training.events import EpochEvent, TrainerCallback
from dla.training.recipe import DistillConfig, EmaConfig, Recipe, ScheduleConfig
from dla.training.recipe_input import AugmentConfig, InputConfig
from dla.training.run import train
from support import flat_photos
from support.oracle import timm
from support.progress import Piece, Recorder
from support.tiny import in_the_table

pytestmark = pytest.mark.slow

TINY = Recipe(
    model="tiny", epochs=2, batch_size=8, lr=0.01, input=InputConfig(sizes={0: 32}, val_size=32, crop_pct=1.0),
    augment=AugmentConfig(scale=(0.8, 1.0)), schedule=ScheduleConfig(warmup_epochs=0.5), average=EmaConfig(0.8),
)  # fmt: skip


class Figures(TrainerCallback):
    def __init__(self) -> None:
        self.epochs: list[EpochEvent] = []

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        self.epochs.append(epoch)


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with in_the_table():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat_photos.write(tmp_path_factory.mktemp("data"))


def test_a_run_learns_and_its_folder_predicts(data: Path, tmp_path: Path) -> None:
    figures, progress = Figures(), Recorder()
    recipe = replace(TINY, epochs=8)
    folder = train(data, recipe, output=tmp_path / "run", workers=1, progress=progress, callback=figures)
    headers = [Piece("reading headers", count, "photos", count) for count in (40, 10)]
    assert progress.pieces == [*headers, Piece("training", 8 * 40, "photos", 8 * 40)]
    epochs = figures.epochs
    assert max(e.figures["top1"] for e in epochs) == 1.0
    assert [e.epoch for e in epochs] == list(range(1, 9))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["top1"] for line in lines] == [e.figures["top1"] for e in epochs]
    assert [line["step"] for line in lines] == [5 * e.epoch for e in epochs]
    prediction = dla.load(str(folder / "best")).predict(data / "val" / "red" / "0.png")
    assert prediction.classes[0].label == "red"


def test_the_best_epoch_is_kept_and_its_figures_are_true(data: Path, tmp_path: Path) -> None:
    folder = train(data, replace(TINY, epochs=4, lr=0.05), output=tmp_path / "run", workers=0)
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(epochs, key=lambda e: (e["top1"], -e["val_loss"]))
    facts = json.loads((folder / "run.json").read_text())
    assert facts["best"].items() >= {key: best[key] for key in ("epoch", "top1", "top5")}.items()
    assert (folder / "report.html").exists()
    photos = sorted((data / "val").rglob("*.png"))
    predictions = dla.load(str(folder / "best")).predict(photos)
    right = [p.classes[0].class_id == path.parent.name for p, path in zip(predictions, photos, strict=True)]
    assert np.mean(right) == best["top1"]


def test_a_finished_run_says_so_and_other_settings_are_named(data: Path, tmp_path: Path) -> None:
    recipe, progress = replace(TINY, epochs=1), Recorder()
    train(data, recipe, output=tmp_path / "run", workers=0)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != "run.lock"}
    train(data, recipe, output=tmp_path / "run", workers=2, progress=progress)
    assert "is finished: best" in progress.said[0]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    other = replace(recipe, lr=0.3, augment=replace(recipe.augment, flip=0.25))
    with pytest.raises(dla.UsageError, match=r"lr is 0.01 there and 0.3 here; augment.flip is 0.5 there and 0.25 here"):
        train(data, other, output=tmp_path / "run")


def test_a_teacher_is_followed(data: Path, tmp_path: Path) -> None:
    """A teacher that swaps the classes, with all the weight, teaches the swapped classes."""
    np.save(tmp_path / "scores.npy", np.repeat([[0.0, 9.0], [9.0, 0.0]], 20, axis=0).astype(np.float16))
    recipe = replace(
        TINY, epochs=20, distill=DistillConfig(scores=str(tmp_path / "scores.npy"), weight=1.0, temperature=1.0)
    )
    figures = Figures()
    train(data, recipe, output=tmp_path / "run", workers=1, callback=figures)
    assert figures.epochs[-1].figures["top1"] == 0.0


def test_from_the_command_line_by_a_recipe(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(data), "--recipe", "tiny-imagenet", "--output", str(tmp_path / "r"), "--epochs", "1"]
    small = ["--batch-size", "10", "--input.sizes", "{0: 32}", "--input.val-size", "32"]
    assert main([*words, *small]) == 0
    assert load_file(tmp_path / "r" / "best" / "model.safetensors")["fc.weight"].dtype.is_floating_point
    config = yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())
    assert config["distill"]["weight"] == 0.7
    assert config["photos"] == str(data)
    assert "epoch 1" in capsys.readouterr().err


def test_timm_reads_the_model_of_a_run(data: Path, tmp_path: Path) -> None:
    folder = train(data, replace(TINY, model="dla46x_c", epochs=1), output=tmp_path / "run", workers=0)
    theirs = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    ours = dla.create_model(str(folder / "best"), pretrained=True).eval()
    x_N3HW = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x_N3HW), theirs(x_N3HW), rtol=1e-4, atol=1e-4)
    assert list(theirs.pretrained_cfg["input_size"]) == [3, 32, 32]
    assert list(theirs.pretrained_cfg["label_names"]) == ["blue", "red"]
