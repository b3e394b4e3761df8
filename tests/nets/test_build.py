"""The factory: a name and options become a network, and a wrong option is told."""

from __future__ import annotations

import pytest
import torch

from dla.errors import UnknownNameError
from dla.nets.build import build


def test_none_means_the_default() -> None:
    with torch.device("meta"):
        net = build("dla46_c", num_classes=None, global_pool=None)
    assert net.num_classes == 1000
    assert net.global_pool.pool_type == "avg"


def test_every_option_reaches_the_network() -> None:
    with torch.device("meta"):
        net = build("dla46_c", num_classes=4, in_chans=2, global_pool="max", drop_rate=0.1, output_stride=8)
    assert (net.num_classes, net.in_chans, net.global_pool.pool_type, net.head_drop.p) == (4, 2, "max", 0.1)
    assert [info["reduction"] for info in net.feature_info] == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("drop_path", "dla34 has no option 'drop_path'. Nearest: drop_path_rate"),
        ("num_class", "dla34 has no option 'num_class'. Nearest: num_classes"),
        ("outputstride", "dla34 has no option 'outputstride'. Nearest: output_stride"),
        ("levels", "dla34 has no option 'levels'."),
        ("xyzzy", "dla34 has no option 'xyzzy'. Options: output_stride, num_classes, in_chans, global_pool"),
    ],
)
def test_an_unknown_option_is_told_with_the_nearest(option: str, message: str) -> None:
    for value in (1, None):
        with pytest.raises(TypeError) as caught:
            build("dla34", **{option: value})
        assert str(caught.value).startswith(message)


def test_an_unknown_network_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'no network is called "dla60_res2nxt"\. Nearest: dla60_res2next'):
        build("dla60_res2nxt")


def test_each_network_has_a_record_of_its_own() -> None:
    with torch.device("meta"):
        one, other = build("dla34"), build("dla34")
    one.pretrained_cfg["num_classes"] = 7
    assert other.pretrained_cfg["num_classes"] == 1000


@pytest.mark.parametrize("name", ["dla34_half", "dla60_res2next", "dla102x"])
def test_feature_info_tells_channels_and_reductions(name: str) -> None:
    with torch.device("meta"):
        net = build(name)
        x_N3HW = torch.empty(1, 3, 64, 96)
        for stage, info in zip(net.stages()[1:], net.feature_info, strict=True):
            x_N3HW = net.base_layer(x_N3HW) if info["module"] == "level0" else x_N3HW
            x_N3HW = stage(x_N3HW)
            assert x_N3HW.shape == (1, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])
            assert net.get_submodule(info["module"]) is stage
