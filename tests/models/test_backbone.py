"""Backbones of every kind: what they give, at every size, and what is said of modules that are none."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dla
from dla.errors import UsageError
from dla.models.backbone import Backbone
from dla.models.decoder import Bilinear
from dla.models.feature_net import FeatureInfo
from support.oracle import randomise, timm
from support.tiny import CHANNELS, tiny

SIZES = [(1, 1), (1, 73), (33, 47), (64, 64), (70, 73)]


class Plain(nn.Module):
    """Three strided convolutions; `form` makes what is returned of their maps. `padding` 0 rounds sizes down."""

    def __init__(self, form: Callable[[list[Tensor]], Any] = list, padding: int = 1) -> None:
        super().__init__()
        self.form, self.calls = form, 0
        size = 3 if padding else 2
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, size, 2, padding), nn.BatchNorm2d(b), nn.Dropout(0.5))
            for a, b in ((3, 4), (4, 6), (6, 8))
        )

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.form(maps)


@dataclass
class Output:
    """What a Hugging Face backbone returns."""

    feature_maps: tuple[Tensor, ...]
    hidden_states: tuple[Tensor, ...] | None = None


def torchvision_getter() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter

    return IntermediateLayerGetter(resnet18(), {"layer1": "a", "layer2": "b", "layer4": "c"})


def torchvision_graph() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(resnet18(), ["layer1", "layer2", "layer3", "layer4"])


def of_timm(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, features_only=True, **options)


PLAIN = ((4, 6, 8), (2, 4, 8))
KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[Sequence[int], Sequence[int]]]] = {
    "our network": (tiny, (CHANNELS[1:], (2, 4, 8, 16, 32))),
    "our levels": (
        lambda: dla.create_model("dla34_half", features_only=True, out_indices=(2, 4, 5)),
        ((32, 128, 256), (4, 16, 32)),
    ),
    "our levels, dilated, a dict": (
        lambda: dla.create_model("dla34_half", features_only=True, feature_cls="dict", output_stride=8),
        ((16, 32, 64, 128, 256), (2, 4, 8, 8, 8)),
    ),
    "timm's resnet18": (lambda: of_timm("resnet18"), ((64, 64, 128, 256, 512), (2, 4, 8, 16, 32))),
    "timm's convnext_atto": (lambda: of_timm("convnext_atto"), ((40, 80, 160, 320), (4, 8, 16, 32))),
    "timm's mobilenetv3_small_050": (
        lambda: of_timm("mobilenetv3_small_050"),
        ((16, 8, 16, 24, 288), (2, 4, 8, 16, 32)),
    ),
    "timm's dla46x_c": (
        lambda: of_timm("dla46x_c", out_indices=(0, 2, 5)),
        ((16, 64, 256), (1, 4, 32)),
    ),
    "torchvision's getter": (torchvision_getter, ((64, 128, 512), (4, 8, 32))),
    "torchvision's graph": (torchvision_graph, ((64, 128, 256, 512), (4, 8, 16, 32))),
    "a list": (Plain, PLAIN),
    "a tuple": (lambda: Plain(tuple), PLAIN),
    "a dict": (lambda: Plain(lambda maps: dict(zip("abc", maps, strict=True))), PLAIN),
    "an ordered dict": (lambda: Plain(lambda maps: OrderedDict(zip("abc", maps, strict=True))), PLAIN),
    "feature_maps": (lambda: Plain(lambda maps: Output(tuple(maps))), PLAIN),
    "sizes rounded down": (lambda: Plain(padding=0), PLAIN),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_at_every_size(kind: str) -> None:
    make, (channels, strides) = KINDS[kind]
    net = dla.DLAUp.over(make()).eval()
    assert (net.backbone.channels, net.backbone.strides) == (tuple(channels), tuple(strides))
    assert net.channels == channels[0]
    for h, w in SIZES:
        with torch.inference_mode():
            x_N3HW = torch.randn(2, 3, h, w)
            maps = net.backbone(x_N3HW)
            assert [tuple(m.shape) for m in maps] == [
                (2, c, -(-h // s), -(-w // s)) for c, s in zip(channels, strides, strict=True)
            ]
            assert net(x_N3HW).shape == (2, channels[0], h, w)


@pytest.mark.parametrize("kind", ["timm's resnet18", "timm's convnext_atto", "a list"])
def test_every_height_from_1_to_70(kind: str) -> None:
    net = dla.DLAUp.over(KINDS[kind][0]()).eval()
    for h in range(1, 71, 1 if kind == "a list" else 8):
        with torch.inference_mode():
            assert net(torch.randn(1, 3, h, h + 3)).shape == (1, net.channels, h, h + 3)


def test_a_hugging_face_backbone() -> None:
    import transformers  # here: it takes seconds

    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 12, 16, 20],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    net = dla.DLAUp.over(transformers.ResNetBackbone(config)).eval()
    assert (net.backbone.channels, net.backbone.strides) == ((8, 12, 16, 20), (4, 8, 16, 32))
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 33, 70)).shape == (1, 8, 33, 70)


def test_two_lines_over_timm() -> None:
    net = dla.DLAUp.over(timm.create_model("resnet18", features_only=True))
    y_NCHW = net(torch.randn(2, 3, 35, 50))
    assert y_NCHW.shape == (2, 64, 35, 50)


def test_our_levels_come_as_they_are() -> None:
    """Nothing is added to the image, and nothing is copied; the last step is the up-sampling to the image."""
    model = tiny().eval()
    randomise(model)
    net = dla.DLAUp.over(model).eval()
    x_N3HW = torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        _, expected = model.forward_intermediates(x_N3HW, indices=5)
        found = net.backbone(x_N3HW)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert torch.equal(net(x_N3HW), Bilinear(2, 1)(net.dla_up(expected), (37, 50)))
    shared = {id(p) for p in net.backbone.parameters()}
    assert shared == {id(p) for name, p in model.named_parameters() if not name.startswith("fc.")}


def test_other_networks_see_whole_multiples() -> None:
    net = Plain().eval()
    randomise(net)
    backbone = Backbone.of(net)
    with torch.no_grad():
        whole_N3HW = torch.randn(2, 3, 40, 48)
        assert all(torch.equal(a, b) for a, b in zip(backbone(whole_N3HW), net(whole_N3HW), strict=True))
        x_N3HW = whole_N3HW[:, :, :37, :41]
        padded = net(F.pad(x_N3HW, (0, 7, 0, 3)))
        for found, m, size in zip(backbone(x_N3HW), padded, ((19, 21), (10, 11), (5, 6)), strict=True):
            assert torch.equal(found, m[:, :, : size[0], : size[1]])


def test_a_dry_run_leaves_no_trace() -> None:
    net = Plain().train()
    net.stages[1].eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    random = torch.get_rng_state()
    Backbone.of(net)
    assert net.calls == 1
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_dry_run_has_the_type_of_the_weights() -> None:
    assert Backbone.of(Plain().double()).channels == (4, 6, 8)


def test_what_is_known_is_not_tried() -> None:
    net = Plain()
    backbone = Backbone.of(net, channels=[4, 6, 8], strides=[2, 4, 8])
    assert net.calls == 0
    assert backbone.channels == (4, 6, 8)
    assert Backbone.of(backbone) is backbone
    with torch.device("meta"):
        assert Backbone.of(timm.create_model("resnet18", features_only=True)).strides == (2, 4, 8, 16, 32)


class Tokens(nn.Module):
    """A transformer's (N, L, C)."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(x, 16).flatten(2).mT]


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        raise ValueError("expected 224x224 pixels")


class Announcing(nn.Module):
    """A module that does not keep to its `feature_info`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Plain(last)
        announced = [{"num_chs": c, "reduction": s} for c, s in zip(*PLAIN, strict=True)]
        self.feature_info = FeatureInfo(announced, (0, 1, 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.body(x)


def last(maps: list[Tensor]) -> list[Tensor]:
    """(N, H, W, C)."""
    return [m.permute(0, 2, 3, 1) for m in maps]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: timm.create_model("resnet18"), r"returned a Tensor: \(1, 1000\)\. Allowed: .*features_only=True"),
        (lambda: Plain(lambda maps: (maps[0], None)), r"returned a tuple: \(1, 4, 64, 96\), NoneType\."),
        (lambda: Plain(lambda maps: []), r"returned a list: empty\."),
        (lambda: Plain(lambda maps: {"out": 1}), r"returned a dict: int\."),
        (Tokens, r"returned a list: \(1, 96, 3\)\. Allowed: .*\(N, C, H, W\)"),
        (lambda: of_timm("vit_tiny_patch16_224", depth=3), r"all 3 maps .* have stride 16, as in a vision transformer"),
        (lambda: Plain(last), r"returned maps \(1, 64, 96, 4\), .* its strides are unknown\. Try: channels=\[\.\.\.\]"),
        (Fixed, r"failed on an image \(1, 3, 128, 192\): expected 224x224 pixels\. Try: channels="),
        (lambda: Plain(lambda maps: maps[::-1]), r"strides are \(8, 4, 2\)\. Allowed: .*finest map first"),
    ],
)
def test_modules_that_are_no_backbone(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dla.DLAUp.over(make())


def swin(**options: Any) -> nn.Module:
    return of_timm(
        "swin_tiny_patch4_window7_224", embed_dim=4, depths=(1, 1, 1), num_heads=(1, 1, 1), img_size=64, window_size=2,
        out_indices=(0, 1, 2), **options,
    )  # fmt: skip


def test_a_layout_that_is_announced_is_refused_at_once_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"returns maps NHWC\. Allowed: NCHW\. Try, .* feature_cls='getter'\)$"):
        dla.DLAUp.over(swin())
    net = dla.DLAUp.over(swin(feature_cls="getter"))
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 4, 64, 64)


def test_channels_that_come_last_unannounced_are_seen_at_the_first_image() -> None:
    net = dla.DLAUp.over(Announcing())
    with pytest.raises(UsageError, match=r"returned maps \(2, \d+, \d+, 4\), .* Expected, as \(N, C, H, W\): \(2, 4, "):
        net(torch.randn(2, 3, 64, 64))


def test_maps_that_are_not_as_announced() -> None:
    with pytest.raises(UsageError, match=r"Expected, as \(N, C, H, W\): \(2, 4, 32, 32\), \(2, 6, 16, 16\)$"):
        Backbone.of(Plain(), (4, 6), (2, 4))(torch.randn(2, 3, 64, 64))


def test_channels_and_strides_come_together() -> None:
    with pytest.raises(UsageError, match=r"channels are None and strides are \(2, 4, 8\)\. Allowed: both, or neither"):
        Backbone.of(Plain(), strides=(2, 4, 8))
