"""The authors' spelling of a state dict: names, order and shapes, against their module tree and their files' keys."""

from __future__ import annotations

import pytest
import torch

from dla.models.build import build
from dla.weights.keys import authors_state, shapes_of, unused_projections
from support.authors import SHAPES, AuthorsDLA
from support.recorded import recorded_shapes

DEAD = {  # trainable numbers in projections that no output depends on
    "dla34": 41_728, "dla46_c": 8_448, "dla46x_c": 8_448, "dla60x_c": 16_896, "dla60": 297_472, "dla60x": 297_472,
    "dla102": 462_848, "dla102x": 462_848, "dla102x2": 462_848, "dla169": 599_296,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_names_order_and_shapes_are_the_authors(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build(name), AuthorsDLA(name)
    found, expected = authors_state(ours), theirs.state_dict()
    assert list(shapes_of(found).items()) == list(shapes_of(expected).items())
    assert list(found)[-1] == "fc.bias"  # CenterNet and others read the number of classes off the last one
    dead = {key: found[key] for key in found if key not in ours.state_dict()}
    assert sum(t.numel() for key, t in dead.items() if key.endswith(("weight", "bias"))) == DEAD[name]


@pytest.mark.parametrize("name", ["dla34", "dla60", "dla102", "dla169"])
def test_their_files_have_these_keys(name: str) -> None:
    with torch.device("meta"):
        found = shapes_of(authors_state(build(name)))
    assert list(found.items()) == list(recorded_shapes(f"ucbdrive-{name}up", prefix="base.").items())


def test_dead_projections_are_as_a_network_begins() -> None:
    model = build("dla60", num_classes=2)
    state = authors_state(model)
    for key in unused_projections(model):
        tensor = state[key]
        if key.endswith("0.weight"):
            sigma = (2 / tensor.shape[0]) ** 0.5
            assert abs(float(tensor.std()) / sigma - 1) < 0.05
            assert abs(float(tensor.mean())) < 0.05 * sigma
        else:
            expected = 1 if key.endswith(("1.weight", "running_var")) else 0
            assert tensor.dtype == (torch.int64 if key.endswith("tracked") else torch.float32)
            assert (tensor == expected).all()
    again = authors_state(model)
    assert all(torch.equal(state[key], again[key]) for key in state)
