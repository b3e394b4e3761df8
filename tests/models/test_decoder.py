"""The decoder: names, numbers, sizes, gradients, what its up-sampling does at the border."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dla
from dla.errors import UsageError
from dla.models.decoder import IDA, Bilinear, DLAUp, Transposed
from support.oracle import randomise, relative
from support.recorded import recorded_shapes
from support.tiny import CHANNELS, shallow, tiny

pytestmark = pytest.mark.slow

NARROW, WIDE = (32, 64, 128, 256, 512), (32, 128, 256, 512, 1024)
STRIDES = (2, 4, 8, 16, 32)
UPS = ("bilinear", "authors")

# widths and strides: as in the networks, equal widths, jumps, one that starts late, two maps, one
LADDERS = [
    ((3, 5, 7, 9), (2, 4, 8, 16)),
    ((4, 4, 4, 6), (4, 8, 16, 32)),
    ((3, 6, 5), (4, 16, 32)),
    ((3, 4), (1, 8)),
    ((3, 4, 5, 5), (2, 4, 8, 8)),
    ((3, 5), (4, 12)),
    ((5,), (4,)),
]


# -- names


def rule(channels: Sequence[int], strides: Sequence[int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the authors' `dla_up.*`, in their order."""

    def norm(name: str, c: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.1.{tensor}", (c,)
        yield f"{name}.1.num_batches_tracked", ()

    last = len(channels) - 1
    for i in range(last):
        j = last - 1 - i
        c, coarser, f = channels[j], channels[j + 1], strides[j + 1] // strides[j]
        for m in range(1, i + 2):
            if coarser != c:
                yield f"ida_{i}.proj_{m}.0.weight", (c, coarser, 1, 1)
                yield from norm(f"ida_{i}.proj_{m}", c)
            if f > 1:
                yield f"ida_{i}.up_{m}.weight", (c, 1, 2 * f, 2 * f)
        for m in range(1, i + 2):
            yield f"ida_{i}.node_{m}.0.weight", (c, 2 * c, 3, 3)
            yield from norm(f"ida_{i}.node_{m}", c)


def shapes(net: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in net.state_dict().items()]


@pytest.mark.parametrize(("channels", "strides"), [(NARROW, STRIDES), (WIDE, STRIDES), *LADDERS])
def test_names_shapes_and_order_follow_the_authors_rule(channels: Sequence[int], strides: Sequence[int]) -> None:
    theirs = list(rule(channels, strides))
    with torch.device("meta"):
        assert shapes(DLAUp(channels, strides, up="authors")) == theirs
        without_up = [(name, shape) for name, shape in theirs if ".up_" not in name]
        assert shapes(DLAUp(channels, strides)) == without_up


@pytest.mark.parametrize(
    ("name", "channels", "parameters"),
    [("dla34", NARROW, 2_310_400), *((name, WIDE, 8_968_192) for name in ("dla60", "dla102", "dla169"))],
)
def test_the_authors_dense_networks_have_these_names(name: str, channels: Sequence[int], parameters: int) -> None:
    recorded = list(recorded_shapes(f"ucbdrive-{name}up", prefix="dla_up.").items())
    with torch.device("meta"):
        decoder = DLAUp.over(dla.create_model(name), up="authors").dla_up
    assert decoder.channels == channels
    assert shapes(decoder) == recorded
    assert sum(p.numel() for p in decoder.parameters()) == parameters


# -- numbers


def up_authors(x_NCHW: Tensor, weight: Tensor, f: int) -> np.ndarray:
    """Each value of x adds its 2f x 2f kernel, f positions apart; the first f // 2 rows and columns fall away."""
    n, c, h, w = x_NCHW.shape
    canvas = np.zeros((n, c, (h + 1) * f, (w + 1) * f))
    for row in range(h):
        for column in range(w):
            spot = canvas[:, :, row * f : row * f + 2 * f, column * f : column * f + 2 * f]
            spot += x_NCHW.numpy()[:, :, row, column, None, None] * weight.numpy()[None, :, 0]
    return canvas[:, :, f // 2 :, f // 2 :]


def along(length: int, size: int, f: float) -> np.ndarray:
    """Linear interpolation of `length` values to `size`, f positions for each, as a matrix."""
    matrix = np.zeros((size, length))
    for position in range(size):
        source = min(max((position + 0.5) / f - 0.5, 0), length - 1)
        below = min(int(source), length - 1)
        above = min(below + 1, length - 1)
        matrix[position, below] += 1 - (source - below)
        matrix[position, above] += source - below
    return matrix


def up_bilinear(x_NCHW: Tensor, size: Sequence[int], f: float) -> np.ndarray:
    (h, w), (rows, columns) = x_NCHW.shape[2:], size
    return along(h, rows, f) @ x_NCHW.numpy() @ along(w, columns, f).T


class Reference:
    """The decoder written from its description, on a state dict alone."""

    def __init__(self, net: DLAUp, up: str) -> None:
        self.state, self.up = net.state_dict(), up

    def mixed(self, name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            self.state[f"{name}.1.{t}"][:, None, None] for t in ("weight", "bias", "running_mean", "running_var")
        )
        kernel = self.state[f"{name}.0.weight"]
        y = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
        return ((y - mean) / (var + 1e-5).sqrt() * weight + bias).clamp(min=0)

    def raised(self, name: str, x: Tensor, like: Tensor, f: float) -> Tensor:
        if f == 1:
            return x
        h, w = like.shape[2:]
        if self.up == "bilinear":
            return torch.from_numpy(up_bilinear(x, (h, w), f))
        return torch.from_numpy(up_authors(x, self.state[f"{name}.weight"], int(f))[:, :, :h, :w])

    def __call__(self, maps: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
        last = len(maps) - 1
        s = dict(enumerate(maps))
        for i in range(last):
            j = last - 1 - i
            f = strides[j + 1] / strides[j]
            y = maps[j]
            for m, k in enumerate(range(j + 1, last + 1), start=1):
                ida = f"ida_{i}"
                p = self.mixed(f"{ida}.proj_{m}", s[k]) if f"{ida}.proj_{m}.0.weight" in self.state else s[k]
                y = self.mixed(f"{ida}.node_{m}", torch.cat([y, self.raised(f"{ida}.up_{m}", p, maps[j], f)], 1))
                s[k] = y
        return s[last]


def random_maps(channels: Sequence[int], strides: Sequence[int], h: int, w: int) -> list[Tensor]:
    """Maps of an image of h x w."""
    return [
        torch.randn(2, c, math.ceil(h / s), math.ceil(w / s), dtype=torch.float64)
        for c, s in zip(channels, strides, strict=True)
    ]


def random_decoder(channels: Sequence[int], strides: Sequence[int], up: str) -> DLAUp:
    net = DLAUp(channels, strides, up).double().eval()
    randomise(net)
    for name, weight in net.named_parameters():
        if ".up_" in name:
            nn.init.normal_(weight)
    return net


@pytest.mark.parametrize("size", [(64, 96), (70, 73), (47, 33), (1, 1), (5, 2)])
@pytest.mark.parametrize(("channels", "strides"), LADDERS)
@pytest.mark.parametrize("up", UPS)
def test_values_are_those_of_the_description(
    up: str, channels: Sequence[int], strides: Sequence[int], size: tuple[int, int]
) -> None:
    torch.manual_seed(sum(size))
    net = random_decoder(channels, strides, up)
    maps = random_maps(channels, strides, *size)
    with torch.no_grad():
        found = net(maps)
    assert found.shape == maps[0].shape
    assert relative(found, Reference(net, up)(maps, strides)) < 1e-9


def test_one_aggregation_is_the_formula_of_the_paper() -> None:
    """I over three maps of their own strides, each step of it written out."""
    torch.manual_seed(0)
    net = IDA((4, 6, 8), (4, 8, 16)).double().eval()
    randomise(net)
    x = random_maps((4, 6, 8), (4, 8, 16), 64, 80)

    def raised(m: int, times: int) -> Tensor:
        return F.interpolate(net[f"proj_{m}"](x[m]), scale_factor=times, mode="bilinear")

    with torch.no_grad():
        first = net["node_1"](torch.cat((x[0], raised(1, 2)), 1))
        second = net["node_2"](torch.cat((first, raised(2, 4)), 1))
        steps = net(x)
    assert len(steps) == 3
    assert torch.equal(steps[0], x[0])
    assert relative(steps[1], first) < 1e-12
    assert relative(steps[2], second) < 1e-12


def test_convolutions_begin_as_the_authors_do() -> None:
    net = DLAUp(NARROW, STRIDES, up="authors")
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1), name


# -- up-sampling


@pytest.mark.parametrize("f", [2, 4, 8, 16])
def test_the_authors_up_sampling_begins_bilinear(f: int) -> None:
    """Away from the border it is the interpolation, at sizes that are multiples and at others."""
    x_NCHW = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    up = Transposed(3, f).double()
    assert up.weight.shape == (3, 1, 2 * f, 2 * f)
    inner = (..., slice(f, 5 * f), slice(f, 6 * f))
    for h, w in ((6 * f, 7 * f), (6 * f - 1, 7 * f - f + 1)):
        with torch.no_grad():
            found, expected = up(x_NCHW, (h, w)), Bilinear(f, 1)(x_NCHW, (h, w))
        assert found.shape == expected.shape == (2, 3, h, w)
        assert relative(found[inner], expected[inner]) < 1e-12


def test_the_authors_up_sampling_is_dark_at_the_border() -> None:
    up = Transposed(1, 2)
    assert up.weight[0, 0].tolist() == [[a * b for b in (0.25, 0.75, 0.75, 0.25)] for a in (0.25, 0.75, 0.75, 0.25)]
    ones = up(torch.ones(1, 1, 4, 4), (8, 8))[0, 0]
    assert ones[0].tolist() == [0.5625, *[0.75] * 6, 0.5625]
    assert torch.equal(ones[1:-1, 1:-1], torch.ones(6, 6))


sizes = st.integers(1, 40)


@given(h=sizes, w=sizes, step=st.sampled_from([(2, 1), (4, 2), (16, 4), (32, 1), (3, 2), (7, 4)]))
def test_a_constant_stays_constant(h: int, w: int, step: tuple[int, int]) -> None:
    coarse, fine = step
    rounding = 1e-6 if coarse % fine else 0  # thirds and sevenths have no exact weights
    rounded_up = (math.ceil(h * fine / coarse), math.ceil(w * fine / coarse))
    rounded_down = tuple(max(1, n * fine // coarse) for n in (h, w))
    for rows, columns in (rounded_up, rounded_down):
        found = Bilinear(coarse, fine)(torch.ones(1, 2, rows, columns), (h, w))
        assert found.shape == (1, 2, h, w)
        assert (found - 1).abs().max() <= rounding


@pytest.mark.parametrize("up", [Bilinear(4, 1), Transposed(3, 4)])
def test_a_smaller_size_is_the_beginning_of_a_larger_one(up: nn.Module) -> None:
    """The grid does not stretch with the size of the image."""
    x_NCHW = torch.randn(1, 3, 5, 6)
    with torch.no_grad():
        whole = up(x_NCHW, (20, 24))
        for h, w in ((17, 21), (18, 24), (20, 22)):
            assert torch.equal(up(x_NCHW, (h, w)), whole[:, :, :h, :w])


def test_maps_that_were_rounded_down_are_continued() -> None:
    """Of a 9x11 map a backbone without padding makes 4x5: the last row and column are beyond its border."""
    x_NCHW = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    beyond = F.pad(x_NCHW, (0, 1, 0, 1), mode="replicate")
    found = Bilinear(2, 1)(x_NCHW, (9, 11))
    assert relative(found, torch.from_numpy(up_bilinear(beyond, (9, 11), 2))) < 1e-12
    up = Transposed(2, 2).double()
    with torch.no_grad():
        theirs = up_authors(F.pad(x_NCHW, (0, 1, 0, 1)), up.weight, 2)[:, :, :9, :11]
        assert relative(up(x_NCHW, (9, 11)), torch.from_numpy(theirs)) < 1e-12


# -- sizes


@pytest.mark.parametrize("up", UPS)
@pytest.mark.parametrize("options", [{}, {"output_stride": 8}], ids=["plain", "dilated"])
def test_output_size_is_input_size(up: str, options: dict[str, Any]) -> None:
    net = DLAUp.over(shallow(num_classes=0, **options), up=up).eval()
    for h in range(1, 71):
        for w in {h + 3, 74 - h, 1, 73}:
            with torch.inference_mode():
                assert net(torch.randn(1, 3, h, w)).shape == (1, CHANNELS[1], h, w)
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 500, 333)).shape == (1, CHANNELS[1], 500, 333)


@pytest.mark.parametrize(("channels", "strides"), LADDERS)
@pytest.mark.parametrize("up", UPS)
def test_any_list_of_maps(up: str, channels: Sequence[int], strides: Sequence[int]) -> None:
    net = DLAUp(channels, strides, up).double().eval()
    for h in range(1, 71):
        maps = random_maps(channels, strides, h, h + 3)
        with torch.inference_mode():
            assert net(maps).shape == maps[0].shape


def test_strides_need_not_be_multiples_to_be_interpolated() -> None:
    net = random_decoder((3, 4, 5), (2, 3, 7), "bilinear")
    maps = random_maps((3, 4, 5), (2, 3, 7), 84, 42)
    with torch.no_grad():
        assert relative(net(maps), Reference(net, "bilinear")(maps, (2, 3, 7))) < 1e-9


@pytest.mark.parametrize("up", UPS)
def test_levels_from_any_one_on(up: str) -> None:
    """Finest stride 1 needs no up-sampling to the image, finest stride 8 three times as much."""
    for first in (0, 3):
        backbone = dla.create_model("dla34_half", features_only=True, out_indices=range(first, 6))
        net = DLAUp.over(backbone, up=up).eval()
        with torch.inference_mode():
            assert net(torch.randn(1, 3, 35, 50)).shape == (1, (8, 16, 32, 64)[first], 35, 50)


# -- training


@pytest.mark.parametrize("up", UPS)
def test_gradients_reach_every_parameter(up: str) -> None:
    torch.manual_seed(0)
    net = DLAUp.over(tiny(num_classes=0), up=up).train()
    net(torch.randn(2, 3, 33, 70)).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize("up", UPS)
def test_gradients_are_right(up: str) -> None:
    torch.manual_seed(0)
    net = random_decoder((2, 3, 3), (2, 4, 8), up)
    maps = [m.requires_grad_() for m in random_maps((2, 3, 3), (2, 4, 8), 9, 13)]
    assert torch.autograd.gradcheck(lambda *maps: net(maps), maps)


@pytest.mark.parametrize("up", UPS)
def test_copies_and_state_dicts(up: str) -> None:
    net = DLAUp.over(tiny(num_classes=0), up=up).eval()
    randomise(net)
    x_N3HW = torch.randn(2, 3, 37, 50)
    again = DLAUp.over(tiny(num_classes=0), up=up).eval()
    again.load_state_dict(net.state_dict(), strict=True)
    with torch.no_grad():
        expected = net(x_N3HW)
        for other in (copy.deepcopy(net), again, pickle.loads(pickle.dumps(net))):
            assert torch.equal(other(x_N3HW), expected)


# -- options and errors


@pytest.mark.parametrize("up", UPS)
def test_other_norms_and_activations(up: str) -> None:
    net = DLAUp.over(
        tiny(num_classes=0), up=up, norm_layer=lambda c: nn.GroupNorm(2, c), act_layer=nn.Hardswish
    )  # fmt: skip
    kinds = {type(module) for module in net.dla_up.modules()}
    assert {nn.GroupNorm, nn.Hardswish} <= kinds
    assert not {nn.BatchNorm2d, nn.ReLU} & kinds
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, CHANNELS[1], 32, 32)


@pytest.mark.parametrize(
    ("channels", "strides", "options", "message"),
    [
        ((8, 16), (4,), {}, r"channels are \(8, 16\) and strides are \(4,\). Allowed: one of each per map"),
        ((), (), {}, r"channels are \(\) and strides are \(\)"),
        ((8, 0), (4, 8), {}, r"from 1 up"),
        ((8, 16), (8, 4), {}, r"strides are \(8, 4\). Allowed: .* finest map first"),
        ((8, 16), (4, 8), {"up": "nearest"}, r"up is 'nearest'. Allowed: 'bilinear', 'authors'"),
        (
            (8, 16),
            (4, 6),
            {"up": "authors"},
            r"stride 6 is not a multiple of 4, as up='authors' needs. Try: up='bilinear'",
        ),
    ],
)
@pytest.mark.parametrize("kind", [IDA, DLAUp])
def test_wrong_shapes(
    kind: type[nn.Module], channels: Sequence[int], strides: Sequence[int], options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        kind(channels, strides, **options)


@pytest.mark.parametrize("kind", [IDA, DLAUp])
def test_wrong_maps(kind: type[nn.Module]) -> None:
    net = kind((4, 6), (4, 8)).eval()
    fine_NCHW, coarse_NCHW = torch.randn(1, 4, 12, 16), torch.randn(1, 6, 6, 8)
    net([fine_NCHW, coarse_NCHW])
    expected = r"Expected: \(N, C, H, W\) with C 4, 6"
    for wrong in ([fine_NCHW], [coarse_NCHW, fine_NCHW], [fine_NCHW, coarse_NCHW, coarse_NCHW],
                  [fine_NCHW, coarse_NCHW[0]]):  # fmt: skip
        with pytest.raises(UsageError, match=expected):
            net(wrong)
    with pytest.raises(UsageError, match=r"a map of 3x4 is 2 times coarser than one of 12x16.* Expected: 6x8"):
        net([fine_NCHW, coarse_NCHW[:, :, :3, :4]])
