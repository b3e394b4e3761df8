"""`dla train`, its first part: a tiny run learns, stops and goes on, and ends in a model folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dla
from dla.cli import main
from dla.recipes.schema import Augment, Distill, Recipe
from dla.verbs.train import fit
from dla.verbs.train.run import Listener, train

TINY = Recipe(
    model="dla34_half", epochs=2, batch_size=8, sizes={0: 32}, val_size=32, lr=0.01, warmup_epochs=0.5,
    label_smoothing=0.0, ema_decay=0.8, augment=Augment(scale=(0.8, 1.0)),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that a colour tells apart."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 5)):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(-40, 40, (40, 48, 3))
                pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_a_run_learns_and_its_folder_predicts(data: Path, tmp_path: Path) -> None:
    epochs = []
    recipe = Recipe(**{**vars(TINY), "epochs": 8})
    best = train(data, recipe, tmp_path / "run", workers=1, listener=Listener(epoch=epochs.append))
    assert epochs[-1].top1 == 1.0
    assert [e.epoch for e in epochs] == list(range(8))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["top1"] for x in lines] == [e.top1 for e in epochs]
    prediction = dla.load(str(best)).predict(data / "val" / "red" / "0.png")
    assert prediction.classes[0].label == "red"


class StopRunError(Exception):
    pass


@pytest.mark.parametrize("stop_after", [3, 5, 7])
def test_a_stopped_run_ends_in_the_same_bits(
    data: Path, tmp_path: Path, stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint after every step, a stop in the middle, and the weights of a run without either."""
    whole = train(data, TINY, tmp_path / "whole", workers=0)
    monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", -1.0)
    seen = 0

    def stop(epoch: int, step: int, steps: int, loss: float) -> None:
        nonlocal seen
        seen += 1
        if seen == stop_after:
            raise StopRunError

    with pytest.raises(StopRunError):
        train(data, TINY, tmp_path / "run", workers=2, listener=Listener(step=stop))
    said: list[str] = []
    again = train(data, TINY, tmp_path / "run", workers=2, listener=Listener(said=said.append))
    assert any(text.startswith("goes on at epoch") for text in said)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_several_sizes_take_turns() -> None:
    recipe = Recipe(sizes={0: 32, 2: [48, 64]})
    assert [recipe.size_at(e, s) for e in (1, 2, 7) for s in (0, 1, 2)] == [32, 32, 32, 48, 64, 48, 48, 64, 48]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sizes": {1: 32}}, "from epoch 0"),
        ({"sizes": {0: []}}, "positive"),
        ({"sizes": {0: [32, 0]}}, "positive"),
        ({"augment": Augment(scale=(0.5, 1.3), margin=0.05)}, "augment.margin"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        Recipe(**wrong)


def test_another_recipe_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(dla.UsageError, match="another recipe"):
        train(data, TINY, tmp_path)


def test_a_teacher_is_followed(data: Path, tmp_path: Path) -> None:
    """A teacher that swaps the classes, with all the weight, teaches the swapped classes."""
    np.save(tmp_path / "scores.npy", np.repeat([[0.0, 9.0], [9.0, 0.0]], 20, axis=0).astype(np.float16))
    recipe = Recipe(**{**vars(TINY), "epochs": 8, "distill": Distill(str(tmp_path / "scores.npy"), 1.0, 1.0)})
    epochs = []
    train(data, recipe, tmp_path / "run", workers=1, listener=Listener(epoch=epochs.append))
    assert epochs[-1].top1 == 0.0


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    recipe = Recipe(epochs=10, lr=0.4, warmup_epochs=2)
    rates = [fit.learning_rate(recipe, e) for e in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.2, 0])


def test_the_recipe_of_the_shipped_network_is_readable(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", str(data), "--recipe", "tiny-imagenet", "--output", str(tmp_path / "r"), "--epochs", "1"]
    small = ["--batch_size", "10", "--sizes", "{0: 32}", "--val_size", "32"]
    assert main([*words, *small]) == 0
    assert load_file(tmp_path / "r" / "best" / "model.safetensors")["fc.weight"].dtype == torch.float16
    recipe = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert recipe["distill"]["weight"] == 0.7
    assert "epoch 1" in capsys.readouterr().err
