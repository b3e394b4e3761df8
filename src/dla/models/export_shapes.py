"""What an exporter needs that is to allow every size of the image: that sizes of pooled maps can be proved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["exports_any_size", "to_even_sides"]


def exports_any_size(x: Tensor) -> bool:
    """Whether an exporter must prove sizes for every H and W: it can for padding, but not for ceil_mode."""
    if not torch.compiler.is_exporting():
        return False
    # The strict exporter shows every size as an int, so there is no telling.
    return torch.compiler.is_dynamo_compiling() or not all(isinstance(n, int) for n in x.shape[2:])


def to_even_sides(x: Tensor, value: float) -> Tensor:
    """`x` with a row or column of `value` at the bottom and at the right where it has odd sides.

    Exporters of PyTorch 2.11 and 2.12 pool with stride 2 at sides of which they know whether they are odd, no others.
    """
    h, w = (2 * ((side - 1) // 2 + 1) for side in x.shape[2:])
    return F.pad(x, (0, w - x.shape[3], 0, h - x.shape[2]), value=value)
