"""Recipes: read by name or path, changed field by field, written so that they read the same again."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import dla
from dla.data.sources import DataOptions
from dla.training.recipe import DistillConfig, OptimizerConfig, Recipe, RegularizationConfig
from dla.training.recipe_files import (
    default_output,
    default_recipe,
    differing,
    read_recipe,
    recipe_from,
    shipped_recipes,
    to_yaml,
)
from dla.training.recipe_input import AugmentConfig, InputConfig


@pytest.mark.parametrize("name", shipped_recipes())
def test_what_is_written_reads_the_same(name: str, tmp_path: Path) -> None:
    recipe = recipe_from(name, {})
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert recipe_from(str(tmp_path / "again.yaml"), {}) == recipe


@settings(max_examples=15)
@given(
    st.integers(1, 999), st.floats(1e-6, 10), st.floats(0, 1), st.dictionaries(st.integers(1, 50), st.integers(1, 999))
)
def test_any_recipe_reads_the_same(epochs: int, lr: float, flip: float, sizes: dict[int, int | list[int]]) -> None:
    recipe = Recipe(
        epochs=epochs, lr=lr, augment=AugmentConfig(flip=flip), input=InputConfig(sizes={0: [32, 64], **sizes})
    )
    values = yaml.safe_load(to_yaml(recipe))
    flat = {f"{group}.{k}": v for group in ("augment", "input") for k, v in values[group].items()}
    assert recipe_from(None, flat | {"epochs": values["epochs"], "lr": values["lr"]}) == recipe


def test_settings_go_before_the_recipe() -> None:
    recipe = recipe_from("probe", {"epochs": 3, "optimizer.weight_decay": 0.5})
    assert (recipe.epochs, recipe.optimizer.weight_decay, recipe.optimizer.name) == (3, 0.5, "adamw")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", r'no field of a recipe \(.*\) is called "epoch". Nearest: epochs'),
        ("optimizer: {momentun: 0.9}", r'called "optimizer.momentun". Nearest: optimizer.momentum'),
        ("optimiser: {momentum: 0.9}", r'called "optimiser". Nearest: optimizer'),
        ("optimizer: 3", r"optimizer is 3. Put fields under it, or leave it out"),
        ("- 3", "it has no fields"),
        ("a: [", "is not valid YAML"),
        ("", "it has no fields"),
        ("optimizer:", "optimizer is empty. Put fields under it, or leave it out"),
        ("epochs: many", "epochs is many. Allowed: a whole number$"),
        ("lr: high", "lr is high. Allowed: a number$"),
        ("pretrained: maybe", "pretrained is maybe. Allowed: true or false$"),
        ("optimizer: {name: SGD}", "optimizer.name is SGD. Allowed: sgd, adamw$"),
        ("augment: {scale: [1]}", r"augment.scale is \[1\]. Allowed: a list of 2 values$"),
        ("input: {val_size: x}", "input.val_size is x. Allowed: a whole number, null$"),
        ("epochs:", "epochs is null. Allowed: a whole number$"),
        ("epochs: 0", "epochs is 0: it must be at least 1"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(dla.UsageError, match=said):
        recipe_from(str(path), {})


def test_unknown_names_have_their_nearest() -> None:
    with pytest.raises(dla.UnknownNameError, match='no recipe is called "finetune_small". Nearest: finetune-small'):
        read_recipe("finetune_small")
    with pytest.raises(dla.UnavailableError, match="mine.yaml does not exist"):
        read_recipe("mine.yaml")
    with pytest.raises(dla.UnknownNameError, match="Nearest: optimizer.momentum"):
        recipe_from(None, {"optimizer.momentm": 1})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: InputConfig({1: 32}), "from epoch 0"),
        (lambda: InputConfig({0: []}), "positive"),
        (lambda: InputConfig({0: [32, 0]}), "positive"),
        (lambda: InputConfig({0: 32, -1: 64}), "from epoch 0"),
        (lambda: InputConfig(val_size=0), "input.val_size is 0"),
        (lambda: InputConfig(crop_pct=0), "input.crop_pct is 0. Allowed: above 0, up to 1"),
        (lambda: OptimizerConfig(weight_decay=math.inf), "optimizer.weight_decay is inf: it must be finite"),
        (lambda: RegularizationConfig(drop_rate=1), "regular.drop_rate is 1. Allowed: from 0 to below 1"),
        (lambda: RegularizationConfig(drop_path_rate=-1), "regular.drop_path_rate is -1"),
        (lambda: DataOptions(max_unreadable=math.nan), "max_unreadable is nan"),
        (lambda: AugmentConfig(scale=(0.5, 1.3), margin=0.05), "augment.margin"),
        (lambda: AugmentConfig(scale=(0.5, 0.3)), "rising"),
        (lambda: AugmentConfig(ratio=(0, 1)), "rising"),
        (lambda: AugmentConfig(flip=1.5), "augment.flip is 1.5. Allowed: 0 to 1"),
        (lambda: AugmentConfig(hue=0.7), "0 to 0.5"),
        (lambda: AugmentConfig(mixup=-1), "augment.mixup is -1"),
        (lambda: DistillConfig(weight=2), "distill.weight"),
        (lambda: DistillConfig(temperature=0), "above 0"),
        (lambda: DistillConfig(temperature=math.nan), "above 0"),
        (lambda: DistillConfig("a", "b"), "distill.model and distill.scores are both set"),
        (lambda: Recipe(batch_size=0), "batch_size is 0"),
        (lambda: Recipe(lr=0), "lr is 0"),
        (lambda: Recipe(lr=math.inf), "lr is inf"),
        (lambda: recipe_from(None, {"batch_size": 9, "optimizer.accumulate": 2}), "not a multiple of"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(wrong: Any, said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        wrong()


def test_several_sizes_take_turns() -> None:
    sizes = InputConfig({0: 32, 2: [48, 64]})
    assert [sizes.size_at(e, s, 9) for e in (1, 2, 7) for s in (0, 1, 2)] == [32, 32, 32, 48, 64, 48, 48, 64, 48]
    assert InputConfig().size_at(5, 5, 96) == 96


def test_fields_that_differ_are_named() -> None:
    one, other = Recipe(epochs=3), Recipe(augment=AugmentConfig(flip=0), input=InputConfig({0: 32}))
    found = {name for name, _, _ in differing(asdict(one), asdict(other))}
    assert found == {"epochs", "augment.flip", "input.sizes"}


def test_a_runs_own_name(tmp_path: Path) -> None:
    assert default_output("finetune", str(tmp_path / "flowers")) == Path("runs/finetune-flowers")
    assert default_output("my/own.yaml", "a/train.csv") == Path("runs/own-train")
    assert default_output("runs/mine/config.yaml", "flowers/") == Path("runs/mine-flowers")
    assert default_output(None, "flowers") == Path("runs/train-flowers")


@pytest.mark.parametrize(
    ("fields", "name"),
    [({}, "finetune-small"), ({"task": "segment"}, "segment-small"), ({"task": "edges", "epochs": 3}, "edges-small")],
)
def test_each_task_has_a_recipe_where_none_is_named(fields: dict[str, Any], name: str) -> None:
    assert default_recipe(fields) == name
    assert recipe_from(name, fields).task == fields.get("task", "classify")
