"""Helpers that let `torch.export` prove the sizes of pooled maps, so that exported programs take any image size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def exports_any_size(x: Tensor) -> bool:
    """Return whether x is being exported with dynamic H and W, where padding works but ceil_mode does not."""
    if not torch.compiler.is_exporting():
        return False
    # The strict exporter shows every size as an int, so assume dynamic sizes.
    return torch.compiler.is_dynamo_compiling() or not all(isinstance(n, int) for n in x.shape[2:])


def to_even_sides(x: Tensor, value: float) -> Tensor:
    """Return x (N, C, H, W) with odd sides padded by `value`, at the bottom and at the right.

    The exporters of PyTorch 2.11 and 2.12 support pooling with stride 2 only for sides known to be even or odd.
    """
    h, w = (2 * ((side - 1) // 2 + 1) for side in x.shape[2:])
    return F.pad(x, (0, w - x.shape[3], 0, h - x.shape[2]), value=value)
