"""The rules for foreign names, against published facts about the authors' networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dla.errors import DamagedError
from dla.models.build import build
from dla.weights.keys import CONTAINERS, plain_names, unused_projections, unwrap
from support.recorded import recorded_shapes

# Paths of the projections that get no gradient in the authors' code, and how many parameters they hold there.
DEAD = {
    "dla34": ("level3 level4", 41_728),
    "dla46_c": ("level4", 8_448),
    "dla46x_c": ("level4", 8_448),
    "dla60x_c": ("level4 level4.tree1", 16_896),
    "dla60": ("level3 level4 level4.tree1", 297_472),
    "dla60x": ("level3 level4 level4.tree1", 297_472),
    "dla102": ("level3 level3.tree1 level4 level4.tree1 level4.tree1.tree1", 462_848),
    "dla102x": ("level3 level3.tree1 level4 level4.tree1 level4.tree1.tree1", 462_848),
    "dla102x2": ("level3 level3.tree1 level4 level4.tree1 level4.tree1.tree1", 462_848),
    "dla169": (
        "level2 level3 level3.tree1 level4 level4.tree1 level4.tree1.tree1 level4.tree1.tree1.tree1",
        599_296,
    ),
}


@pytest.mark.parametrize("name", DEAD)
def test_dead_projections_as_the_authors_have_them(name: str) -> None:
    with torch.device("meta"):
        dead = unused_projections(build(name))
    paths, parameters = DEAD[name]
    layers = ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert set(dead) == {f"{path}.project.{layer}" for path in paths.split() for layer in layers}
    assert sum(shape.numel() for key, shape in dead.items() if key.endswith(("weight", "bias"))) == parameters


@pytest.mark.parametrize("name", ["dla34", "dla60", "dla102", "dla169"])
def test_dead_projections_and_a_network_are_the_authors_file(name: str) -> None:
    with torch.device("meta"):
        model = build(name)
    ours = {key: tensor.shape for key, tensor in model.state_dict().items()} | unused_projections(model)
    assert {key: tuple(shape) for key, shape in ours.items()} == recorded_shapes(f"ucbdrive-{name}up", prefix="base.")


WRAPPED = st.lists(st.sampled_from(["module.", "_orig_mod."]), max_size=4).map("".join)


@given(st.dictionaries(st.sampled_from(["fc.bias", "fc.weight", "level0.0.weight"]), WRAPPED, min_size=1))
def test_prefixes_are_taken_off(prefixes: dict[str, str]) -> None:
    tensors = {name: torch.zeros(()) for name in prefixes}
    plain = plain_names({prefix + name: tensors[name] for name, prefix in prefixes.items()})
    assert list(plain) == list(tensors)
    assert all(plain[name] is tensors[name] for name in tensors)


def test_a_name_that_is_there_twice() -> None:
    with pytest.raises(DamagedError, match='"fc.bias" occurs twice, with and without a prefix'):
        plain_names({"fc.bias": torch.zeros(1), "module.fc.bias": torch.zeros(1)})


def test_containers_in_order() -> None:
    inside = {key: {"of": key} for key in reversed(CONTAINERS)}
    for key in ("state_dict_ema", "model_ema", "params_ema", "state_dict", "model"):
        assert unwrap(inside) == ({"of": key}, key)
        del inside[key]
    assert unwrap({"epoch": 3, "model": "dla34"}) == ({"epoch": 3, "model": "dla34"}, "")
