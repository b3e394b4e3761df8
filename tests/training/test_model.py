"""The network that a run begins with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dla
from dla.training.loss import open_teacher
from dla.training.model import InitialModel, build_dense, build_initial, train_mode
from dla.training.recipe import ComputeConfig, DistillConfig, Recipe, RegularizationConfig
from dla.training.recipe_input import InputConfig
from support.small_models import write_dense

FRESH = Recipe(model="dla34_half")
SHIPPED = Recipe(model="shipped:tiny200", pretrained=True)
IDS = ("cat", "dog", "n01443537")


def test_a_fresh_one_has_its_own_preprocessing_and_a_small_classifier() -> None:
    start = build_initial(FRESH, IDS)
    assert start.preprocessing.size == (224, 224)
    assert start.network.fc.weight.shape[0] == 3
    assert start.network.fc.weight.abs().max() <= 1 / 256**0.5
    assert start.config.label_names == IDS
    assert start.config.label_descriptions["n01443537"].startswith("goldfish")


def test_a_trained_one_keeps_its_body_and_its_licence() -> None:
    start = build_initial(SHIPPED, IDS)
    own = dla.create_model("shipped:tiny200", pretrained=True)
    assert torch.equal(start.network.level5.root.conv.weight, own.level5.root.conv.weight)
    assert start.preprocessing == dla.load("shipped:tiny200").preprocessing
    assert "non-commercial" in start.config.dla["license"]
    assert start.config.dla["starts_from"] == "shipped:tiny200"
    assert start.notes[-1] == "shipped:tiny200, with a new classifier for 3 classes"


def test_a_trained_one_for_its_own_classes_keeps_its_classifier() -> None:
    names = dla.load("shipped:tiny200").config.label_names
    assert names is not None
    start = build_initial(SHIPPED, names)
    assert torch.equal(start.network.fc.weight, dla.create_model("shipped:tiny200", pretrained=True).fc.weight)
    assert start.notes == ("shipped:tiny200, which has these classes",)


def test_the_recipe_goes_before_the_networks_preprocessing() -> None:
    asked = InputConfig(val_size=80, crop_pct=0.9, crop_mode="squash", interpolation="bicubic")
    seen = build_initial(replace(SHIPPED, input=asked), IDS).preprocessing
    assert (seen.size, seen.crop_pct, seen.crop_mode, seen.interpolation) == ((80, 80), 0.9, "squash", "bicubic")


def test_dropout_drop_path_and_checkpointing_reach_the_network() -> None:
    for recipe in (FRESH, SHIPPED):
        changed = replace(recipe, regular=RegularizationConfig(0.25, 0.1), compute=ComputeConfig(checkpointing=True))
        network = build_initial(changed, IDS).network
        assert network.head_drop.p == 0.25
        assert network.grad_checkpointing
        assert any(type(m).__name__ == "DropPath" for m in network.modules())


def test_frozen_norms_do_not_learn_either() -> None:
    network = build_initial(replace(SHIPPED, freeze="level1"), IDS).network
    train_mode(network, "level1")
    modes = {name: m.training for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(mode != name.startswith(("base_layer", "level0", "level1")) for name, mode in modes.items())


def test_a_network_teaches_by_the_names_of_its_classes() -> None:
    teacher = dla.load("shipped:tiny200")
    ids = (teacher.config.label_names[7], teacher.config.label_names[3])
    found = open_teacher(DistillConfig(model="shipped:tiny200"), ids, 5, torch.device("cpu"))
    assert found is not None
    pixels = torch.randint(0, 256, (2, 3, 96, 96)).float()
    wanted = teacher.engine.probabilities(pixels.byte().permute(0, 2, 3, 1).numpy())
    ours = found(pixels, None).softmax(1).numpy()
    assert ours[:, 0] == pytest.approx(wanted[:, 7] / (wanted[:, 7] + wanted[:, 3]), rel=1e-4)
    with pytest.raises(dla.UsageError, match="does not know the class 'cat'"):
        open_teacher(DistillConfig(model="shipped:tiny200"), IDS, 5, torch.device("cpu"))


def test_scores_must_fit_the_photos(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "s.npy", np.zeros((4, 3), np.float16))
    with pytest.raises(dla.UsageError, match=r"s.npy holds scores of shape \(4, 3\); 5 training photos in 3 classes"):
        open_teacher(DistillConfig(scores=str(tmp_path / "s.npy")), IDS, 5, torch.device("cpu"))
    with pytest.raises(dla.UnavailableError, match="cannot be read"):
        open_teacher(DistillConfig(scores=str(tmp_path / "none.npy")), IDS, 5, torch.device("cpu"))


class Split:
    """Stands for a split of pairs with these classes."""

    classes = None

    def __init__(self, *class_ids: str) -> None:
        self.class_ids = class_ids

    def short_side(self) -> int:
        return 64


def dense_start(model: Path, *class_ids: str, **fields: Any) -> InitialModel:
    recipe = Recipe(task="segment", model=str(model), pretrained=True, **{"down_ratio": 8, **fields})
    return build_dense(recipe, Split(*class_ids))  # type: ignore[arg-type]


def test_a_dense_network_goes_on_from_another(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "m", ("sky", "road"))
    wanted = dla.create_model(f"local-dir:{folder}", task="segment", pretrained=True).state_dict()
    same = dense_start(folder, "sky", "road")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in same.network.state_dict().items())
    assert same.notes == (f"{folder}, which has these classes",)
    other = dense_start(folder, "sky", "road", "car")
    assert torch.equal(
        other.network.state_dict()["dla_up.ida_0.node_1.0.weight"], wanted["dla_up.ida_0.node_1.0.weight"]
    )
    assert other.network(torch.zeros(1, 3, 33, 40)).shape == (1, 3, 33, 40)
    assert other.notes == (f"{folder}, with a new classifier for 3 classes",)


def test_a_dense_network_goes_on_at_its_own_stride_and_task(tmp_path: Path) -> None:
    folder = write_dense(tmp_path / "m", ("sky", "road"))
    with pytest.raises(dla.UsageError, match=r"decodes to stride 8, but down_ratio is 2\. Give --down-ratio 8"):
        dense_start(folder, "sky", "road", down_ratio=2)
    edges = write_dense(tmp_path / "e", ("boundary",))
    with pytest.raises(dla.UsageError, match="is a boundary network"):
        dense_start(edges, "sky", "road")
