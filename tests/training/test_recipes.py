"""Every recipe that comes along runs: 20 steps, its network, its photos and its batch made small by flags."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

import dla
from dla.cli import main
from dla.training.recipe_files import recipe_from, shipped_recipes
from support import flat_photos
from support.tiny import in_the_table

RECIPES = sorted(Path(str(files("dla.training").joinpath("recipes"))).rglob("*.yaml"), key=lambda path: path.stem)
SMALL = ["--batch-size", "4", "--epochs", "2", "--input.sizes", "{0: 32}", "--input.val-size", "32", "--workers", "0"]
MODEL = {"finetune": "shipped:tiny200", "in1k-paper": "tiny", "tiny-imagenet": "tiny"}
OF_PAIRS = [path for path in RECIPES if recipe_from(path.stem, {}).task != "classify"]


def test_there_are_as_many_as_are_tested() -> None:
    assert [p.stem for p in RECIPES] == sorted([*(p.stem for p in OF_PAIRS), "finetune", "finetune-small",
                                                "in1k-paper", "probe", "tiny-imagenet"])  # fmt: skip
    assert [p.stem for p in OF_PAIRS] == [
        "bsds",
        "bsds-paper",
        "camvid",
        "camvid-paper",
        "edges-small",
        "segment-small",
    ]
    assert shipped_recipes() == [p.stem for p in RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [p for p in RECIPES if p not in OF_PAIRS], ids=lambda p: p.stem)
def test_each_runs_for_20_steps_and_its_model_predicts(recipe: Path, tmp_path: Path) -> None:
    data, output = flat_photos.write(tmp_path / "data"), tmp_path / "run"
    words = ["train", str(data), "--recipe", recipe.stem, "--output", str(output), *SMALL]
    if recipe.stem in MODEL:
        words += ["--model", MODEL[recipe.stem]]
    with in_the_table():
        assert main(words) == 0
        found = dla.load(str(output / "best")).predict(data / "val" / "red" / "0.png")
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert {c.class_id for c in found.classes} == {"red", "blue"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_each_says_what_it_is_for(recipe: Path) -> None:
    header = [line for line in recipe.read_text().splitlines() if line.startswith("# ")]
    words = {line[2:].split()[0] for line in header if line[2] != " "}
    assert words >= {"Aim", "Data", "Result", "Time", "Command", "Source"}


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = recipe_from("in1k-paper", {})
    assert (recipe.lr, recipe.batch_size, recipe.epochs) == (0.1, 256, 120)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 1e-4)
    assert (schedule.name, schedule.every, schedule.factor) == ("steps", 30, 0.1)
    assert (recipe.loss.label_smoothing, recipe.average.decay, recipe.augment.scale) == (0, 0, (0.08, 1.0))
