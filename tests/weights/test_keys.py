"""Whose weights a file holds, told from timm's own networks."""

from __future__ import annotations

import pytest
import torch

from dla.errors import DamagedError
from dla.models.build import build
from dla.models.registry import TABLE
from dla.weights.keys import FIRST_CONV, Shapes, candidate_networks, check_match, shapes_of
from support.oracle import timm

RELEASED = [name for name, row in TABLE.items() if row.tag]


def of_timm(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return shapes_of(timm.create_model(name, num_classes=7, in_chans=4).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_each_network_is_known_by_its_shapes(name: str) -> None:
    assert candidate_networks(of_timm(name)) == [name]


def test_almost_is_not_enough() -> None:
    whole = of_timm("dla46_c")
    for key in ("level3.tree1.root.conv.weight", FIRST_CONV, "level5.root.bn.weight"):
        assert candidate_networks({name: shape for name, shape in whole.items() if name != key}) == []
        assert candidate_networks(whole | {key: (*whole[key][:-1], 9)}) == []
    assert candidate_networks(whole | {"extra": (1,)}) == []
    assert candidate_networks(whole | {"level4.project.0.weight": (128, 64, 1, 1)}) == ["dla46_c"], (
        "the authors' dead projection"
    )
    assert candidate_networks(whole | {"level4.project.0.weight": (128, 64, 3, 3)}) == []
    assert candidate_networks({}) == []


def difference(given: Shapes, name: str = "dla46_c", **options: int) -> str:
    with torch.device("meta"):
        model = build(name, **options)
    with pytest.raises(DamagedError) as raised:
        check_match(model, shapes_of(model.state_dict()), given, "w.pth")
    return str(raised.value)


def test_the_difference_is_readable() -> None:
    given = of_timm("dla46_c") | {"z": (), "a": (2,), "b": (), "c": ()}
    given = {name: shape for name, shape in given.items() if not name.startswith("level0")}
    assert difference(given, num_classes=7, in_chans=4) == (
        "w.pth does not hold the weights of dla46_c: 6 tensors missing (level0.0.weight, level0.1.weight, "
        "level0.1.bias, ...); 4 tensors unknown (a, b, c, ...)."
    )
    other = of_timm("dla46_c") | {"level1.1.bias": ()}
    assert difference(other, num_classes=7, in_chans=4) == (
        "w.pth does not hold the weights of dla46_c: 1 tensors of another shape "
        "(level1.1.bias: one number in the file, 32 in the network)."
    )


def test_another_network_is_named() -> None:
    assert difference(of_timm("dla60x")).endswith(" These are the weights of dla60x.")


def test_only_the_classifier_differs() -> None:
    said = difference(of_timm("dla46_c"), num_classes=5, in_chans=4)
    assert "fc.weight: 7x256x1x1 in the file, 5x256x1x1 in the network" in said
    assert said.endswith(" num_classes=7 loads its classifier, new_head=True replaces it.")


def test_the_same_is_no_error() -> None:
    with torch.device("meta"):
        model = build("dla46_c", num_classes=7, in_chans=4)
    check_match(model, shapes_of(model.state_dict()), of_timm("dla46_c"), "w.pth")
