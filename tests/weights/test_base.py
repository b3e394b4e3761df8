"""Our dla34 under other people's code: CenterNet's two networks, their checkpoints, our backbone in their place."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dla
from dla.errors import DamagedError
from dla.weights.load import load_state
from dla.weights.state_files import read_state
from support.centernet import HEADS, DLAv0, Levels, PoseDLA
from support.oracle import randomise, relative

pytestmark = pytest.mark.slow

KINDS: dict[str, type[nn.Module]] = {"dlav0": DLAv0, "pose_dla_dcn": PoseDLA}
X_N3HW = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def base_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The two lines of docs/backbone.md."""
    return {name.removeprefix("base."): tensor for name, tensor in state.items() if name.startswith("base.")}


@pytest.mark.parametrize(
    ("kind", "fc", "parameters"), [("dlav0", True, 18_474_476), ("pose_dla_dcn", False, 19_675_892)]
)
def test_the_layouts_are_those_of_centernet(kind: str, fc: bool, parameters: int) -> None:
    with torch.device("meta"):
        theirs = KINDS[kind](Levels(fc))
    assert sum(p.numel() for p in theirs.parameters()) == parameters


@pytest.mark.parametrize("fc", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_their_checkpoints_hold_our_backbone(kind: str, fc: bool, tmp_path: Path) -> None:
    theirs = KINDS[kind](Levels(fc)).eval()
    randomise(theirs)
    optimiser = torch.optim.Adam(theirs.parameters()).state_dict()
    torch.save({"epoch": 140, "state_dict": theirs.state_dict(), "optimizer": optimiser}, tmp_path / "ctdet.pth")

    ours = dla.create_model("dla34", num_classes=0).eval()
    report = load_state(ours, base_of(read_state(tmp_path / "ctdet.pth")), new_head=True)
    assert {name.rsplit(".", 2)[0] for name in report.dropped} == {"level3.project", "level4.project"}
    with torch.no_grad():
        expected, maps = theirs.double().base(X_N3HW), ours.double().forward_intermediates(X_N3HW)[1]
    assert max(relative(a, b) for a, b in zip(maps, expected, strict=True)) < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("level4.tree2.root.conv.weight"), "1 tensors missing (level4.tree2.root.conv.weight)"),
        (lambda state: state.update(level6=torch.ones(1)), "1 tensors unknown (level6)"),
        (lambda state: state.update({"level0.1.bias": torch.ones(17)}), "level0.1.bias: 17 in the file, 16 in"),
    ],
)
def test_what_is_missing_or_too_much_is_an_error(change: object, message: str) -> None:
    state = base_of(DLAv0(Levels(fc=False)).state_dict())
    change(state)  # type: ignore[operator]
    with pytest.raises(DamagedError) as caught:
        load_state(dla.create_model("dla34", num_classes=0), state, new_head=True)
    assert message in str(caught.value)


@pytest.mark.parametrize("decoder", ["theirs", "ours"])
@pytest.mark.parametrize("fc", [False, True])
def test_our_parts_in_the_place_of_theirs(fc: bool, decoder: str) -> None:
    theirs = DLAv0(Levels(fc))
    randomise(theirs)
    dla_up = dla.DLAUp((64, 128, 256, 512), (4, 8, 16, 32), up="authors") if decoder == "ours" else None
    ours = DLAv0(dla.create_model("dla34", features_only=True, out_indices=(0, 1, 2, 3, 4, 5)), dla_up)
    assert ours.base.feature_info.channels() == [16, 32, 64, 128, 256, 512]
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("base.fc.")}
    report = load_state(ours, state)  # the whole detector
    assert {name.rsplit(".", 2)[0] for name in report.dropped} == {"base.level3.project", "base.level4.project"}
    assert [name for name in state if name not in report.dropped and "project" not in name] == [
        name for name in ours.state_dict() if "project" not in name
    ]

    found = []
    for net in (ours.double(), theirs.double()):
        with torch.no_grad():
            evaluated = net.eval()(X_N3HW)
        trained = net.train()(X_N3HW)
        sum(map_NCHW.square().mean() for map_NCHW in trained.values()).backward()
        grads = {name: p.grad for name, p in net.named_parameters() if name not in report.dropped and "fc." not in name}
        found.append((evaluated, {name: map_NCHW.detach() for name, map_NCHW in trained.items()}, grads))
    for mine, their in zip(*found, strict=True):
        assert mine.keys() == their.keys()
        assert max(relative(mine[name], their[name]) for name in mine) < 1e-9
    assert found[0][0]["hm"].shape == (2, HEADS["hm"], 16, 24)
