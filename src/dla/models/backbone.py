"""Adapt any module that returns feature maps: images x_N3HW -> a list of maps, finest first.

The module may return a list, tuple or dict of maps (N, C, h, w), or an object with such a `feature_maps` attribute.
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

TRIED_HW = (128, 192)  # H != W, so that maps (N, H, W, C) are not taken for (N, C, H, W)
_ALLOWED = (
    "Allowed: a list, tuple or dict of maps (N, C, H, W), finest first, or an output with feature_maps; "
    "from timm: a convolutional network made with features_only=True"
)
_GIVEN = "Try: channels=[...], strides=[...]"


class Backbone(nn.Module):
    """Images x_N3HW -> maps (N, channels[i], ceil(H/strides[i]), ceil(W/strides[i])), for any H, W >= 1.

    Unless the module is a `FeatureNet`, images are zero-padded at the right and bottom to multiples of all strides.

    Args:
        module: returns the maps; its parameters are shared, not copied.
        channels: channels of the maps.
        strides: strides of the maps in pixels, rising, or equal where the network dilates.

    Raises:
        UsageError: if strides fall or are all equal; in `forward`, if maps have other channels or strides.
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
        """Return `module` as a backbone: a DLA (levels 1 to 5), or any module that returns maps.

        Channels and strides default to its `feature_info` (of timm's and our `features_only`), else to those of its
        maps for an image of 128x192 pixels.

        Raises:
            UsageError: if it does not return maps (N, C, H, W), or its strides cannot be determined.
        """
        if (channels is None) != (strides is None):
            raise UsageError(f"channels are {channels} and strides are {strides}. Allowed: both, or neither")
        if isinstance(module, cls) and channels is None:
            return module
        if isinstance(module, DLA):
            module = FeatureNet(module)
        layout = getattr(module, "output_fmt", "NCHW")  # timm's attribute; NHWC for Swin
        if layout != "NCHW":
            raise UsageError(
                f"the backbone returns maps {getattr(layout, 'value', layout)}. "
                "Allowed: NCHW. Try, for a model of timm: create_model(..., features_only=True, feature_cls='getter')"
            )
        if channels is None or strides is None:
            info: Any = getattr(module, "feature_info", None)
            known = hasattr(info, "channels") and hasattr(info, "reduction")
            channels, strides = (info.channels(), info.reduction()) if known else _measured(module)
        return cls(module, channels, strides)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of images x_N3HW, finest first."""
        h, w = x.shape[2:]
        rows, columns = -h % self.multiple, -w % self.multiple
        if rows or columns:
            x = F.pad(x, (0, columns, 0, rows))
        maps = _maps_in(self.module(x))
        shapes, expected = [tuple(m.shape) for m in maps], self._shapes(x)
        if shapes != expected:
            raise UsageError(
                f"for images {tuple(x.shape)} the backbone returned maps {_list(shapes)}. "
                f"Expected, as (N, C, H, W): {_list(expected)}"
            )
        return [m[:, :, : math.ceil(h / s), : math.ceil(w / s)] for m, s in zip(maps, self.strides, strict=True)]

    def _shapes(self, x: Tensor) -> list[tuple[int, ...]]:
        n, _, h, w = x.shape
        return [(n, c, math.ceil(h / s), math.ceil(w / s)) for c, s in zip(self.channels, self.strides, strict=True)]

    def extra_repr(self) -> str:
        """Return the channels and strides, for `repr`."""
        return f"channels={self.channels}, strides={self.strides}"


def check_levels(channels: Sequence[int], strides: Sequence[int]) -> None:
    """Raise a UsageError unless these are valid channels and strides of maps, finest first."""
    if len(channels) != len(strides) or not strides or min(*channels, *strides) < 1 or list(strides) != sorted(strides):
        raise UsageError(
            f"channels are {tuple(channels)} and strides are {tuple(strides)}. "
            "Allowed: one of each per map, from 1 up, finest map first"
        )


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run in evaluation mode without gradients, then restore the mode of every submodule."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


def _maps_in(output: object) -> list[Tensor]:
    """Return the maps in the output of a module."""
    maps = getattr(output, "feature_maps", output)
    if isinstance(maps, Mapping):
        maps = list(maps.values())
    if isinstance(maps, list | tuple) and maps and all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
        return list(maps)
    several = list(maps) if isinstance(maps, list | tuple) else [maps]
    got = _list([tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__ for m in several])
    raise UsageError(f"the backbone returned a {type(output).__name__}: {got or 'empty'}. {_ALLOWED}")


def _measured(module: nn.Module) -> tuple[list[int], list[int]]:
    """Return the channels and strides of the maps of a small image."""
    (height, width), like = TRIED_HW, next(module.parameters(), torch.empty(0))
    x_13HW = like.new_zeros((1, 3, height, width))
    try:
        with evaluating(module):
            output = module(x_13HW)
    except Exception as error:  # the module is user code
        raise UsageError(f"the backbone failed on an image {tuple(x_13HW.shape)}: {error}. {_GIVEN}") from error
    maps = _maps_in(output)
    strides = [height // m.shape[2] for m in maps]
    if any((m.shape[2] * s, m.shape[3] * s) != TRIED_HW for m, s in zip(maps, strides, strict=True)):
        shapes = _list([tuple(m.shape) for m in maps])
        raise UsageError(
            f"for an image {tuple(x_13HW.shape)} the backbone returned maps {shapes}, which are not all "
            f"(N, C, H/stride, W/stride): its strides are unknown. {_GIVEN}"
        )
    return [m.shape[1] for m in maps], strides


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(str, items))
