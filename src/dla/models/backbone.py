"""Any module that returns maps as a backbone: images x_N3HW -> a list of maps, finest first.

What a module may return: a list, tuple or dict of maps (N, C, h, w), or an object that has them as `feature_maps`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.dla import DLA
from dla.models.feature_net import FeatureNet

__all__ = ["TRIED_HW", "Backbone", "check_levels", "evaluating"]


TRIED_HW = (128, 192)  # two sizes, so that maps (N, H, W, C) are not taken for (N, C, H, W)
_ALLOWED = (
    "Allowed: a list, tuple or dict of maps (N, C, H, W), finest first, or an output with feature_maps; "
    "from timm: a convolutional network made with features_only=True"
)
_GIVEN = "Try: channels=[...], strides=[...]"


class Backbone(nn.Module):
    """Images x_N3HW -> maps (N, channels[i], ceil(H/strides[i]), ceil(W/strides[i])), for every H and W from 1 up.

    A network of another kind than ours sees the image with zeros added at the right and at the bottom, so that its
    sides are multiples of all strides; where they are, nothing is added.

    Args:
        module: returns the maps; its parameters are shared, not copied.
        channels, strides: of the maps. Strides rise, or stay where a network dilates.

    Raises:
        UsageError: strides that fall or are all the same; in `forward`, maps that are not as announced.
    """

    def __init__(self, module: nn.Module, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        check_levels(channels, strides)
        if len(strides) > 1 and strides[0] == strides[-1]:
            raise UsageError(
                f"all {len(strides)} maps of the backbone have stride {strides[0]}, as in a vision transformer. "
                "Allowed: strides that rise from map to map"
            )
        self.module = module
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.multiple = 1 if isinstance(module, FeatureNet) else math.lcm(*strides)

    @classmethod
    def of(
        cls, module: nn.Module, channels: Sequence[int] | None = None, strides: Sequence[int] | None = None
    ) -> Backbone:
        """`module` as a backbone: a DLA (levels 1 to 5), or whatever returns maps.

        Channels and strides are those that are given, else those in its `feature_info` (of timm's and our
        `features_only`), else those of its maps of an image of 128x192 pixels; it is left as it was.

        Raises:
            UsageError: it does not return maps (N, C, H, W), or its strides cannot be told.
        """
        if (channels is None) != (strides is None):
            raise UsageError(f"channels are {channels} and strides are {strides}. Allowed: both, or neither")
        if isinstance(module, cls) and channels is None:
            return module
        if isinstance(module, DLA):
            module = FeatureNet(module)
        layout = getattr(module, "output_fmt", "NCHW")  # timm's name; of Swin it is NHWC
        if layout != "NCHW":
            raise UsageError(
                f"the backbone makes maps {getattr(layout, 'value', layout)}. "
                "Allowed: NCHW. Try, for a model of timm: create_model(..., features_only=True, feature_cls='getter')"
            )
        if channels is None or strides is None:
            info: Any = getattr(module, "feature_info", None)
            known = hasattr(info, "channels") and hasattr(info, "reduction")
            channels, strides = (info.channels(), info.reduction()) if known else _tried(module)
        return cls(module, channels, strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        h, w = x.shape[2:]
        rows, columns = -h % self.multiple, -w % self.multiple
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows))
        maps = _maps_in(self.module(x))
        found, expected = [tuple(m.shape) for m in maps], self._shapes(x)
        if found != expected:
            raise UsageError(
                f"of images {tuple(x.shape)} the backbone made maps {_list(found)}. "
                f"Expected, as (N, C, H, W): {_list(expected)}"
            )
        return [m[:, :, : math.ceil(h / s), : math.ceil(w / s)] for m, s in zip(maps, self.strides, strict=True)]

    def _shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        n, _, h, w = x.shape
        return [(n, c, math.ceil(h / s), math.ceil(w / s)) for c, s in zip(self.channels, self.strides, strict=True)]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, strides={self.strides}"


def check_levels(channels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise a UsageError unless these can be the widths and strides of a list of maps, finest first."""
    if len(channels) != len(strides) or not strides or min(*channels, *strides) < 1 or list(strides) != sorted(strides):
        raise UsageError(
            f"channels are {tuple(channels)} and strides are {tuple(strides)}. "
            "Allowed: one of each a map, from 1 up, finest map first"
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; after it every part of the module has the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _maps_in(found: object) -> list[Tensor]:
    """The maps in what a module returned."""
    maps = getattr(found, "feature_maps", found)
    if isinstance(maps, Mapping):
        maps = list(maps.values())
    if isinstance(maps, list | tuple) and maps and all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        return list(maps)
    several = list(maps) if isinstance(maps, list | tuple) else [maps]
    got = _list([tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in several])
    raise UsageError(f"the backbone returned a {type(found).__name__}: {got or 'empty'}. {_ALLOWED}")


def _tried(module: nn.Module) -> tuple[list[int], list[int]]:
    """Widths and strides of the maps that a module makes of a small image."""
    (height, width), like = TRIED_HW, next(module.parameters(), torch.empty(0))
    x_13HW = like.new_zeros((1, 3, height, width))
    try:
        with evaluating(module):
            found = module(x_13HW)
    except Exception as why:  # it is anyone's code
        raise UsageError(f"the backbone failed on an image {tuple(x_13HW.shape)}: {why}. {_GIVEN}") from why
    maps = _maps_in(found)
    strides = [height // m.shape[2] for m in maps]
    if any((m.shape[2] * s, m.shape[3] * s) != TRIED_HW for m, s in zip(maps, strides, strict=True)):
        shapes = _list([tuple(m.shape) for m in maps])
        raise UsageError(
            f"of an image {tuple(x_13HW.shape)} the backbone made maps {shapes}, which are not all "
            f"(N, C, H/stride, W/stride): its strides cannot be told. {_GIVEN}"
        )
    return [m.shape[1] for m in maps], strides


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
