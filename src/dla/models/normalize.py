"""Pixel normalization in PyTorch, shared by engines, training, exported programs and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dla.types import Array


class Normalize(nn.Module):
    """Normalize uint8 pixels per channel: pixels * scale + shift, both float32 (3,).

    `dla.images.preprocessing.Preprocessing.scale_shift` computes both from a mean and a standard deviation.
    """

    def __init__(self, scale_3: Array, shift_3: Array) -> None:
        super().__init__()
        self.scale_311 = nn.Buffer(torch.from_numpy(scale_3)[:, None, None])
        self.shift_311 = nn.Buffer(torch.from_numpy(shift_3)[:, None, None])

    def forward(self, pixels_NHW3: Tensor) -> Tensor:
        """Return float32 (N, 3, H, W) in channels_last memory format of uint8 pixels (N, H, W, 3)."""
        return self.normalize_(pixels_NHW3.permute(0, 3, 1, 2).float())

    def normalize_(self, pixels_N3HW: Tensor) -> Tensor:
        """Normalize float32 pixels (N, 3, H, W) from 0 to 255 in place and return them."""
        return pixels_N3HW.mul_(self.scale_311).add_(self.shift_311)

    def pixels(self, x_N3HW: Tensor) -> Tensor:
        """Invert `forward` and round: return uint8 (N, H, W, 3) of float32 (N, 3, H, W)."""
        pixels = x_N3HW.sub(self.shift_311).div(self.scale_311).round().clamp(0, 255).byte()
        return pixels.permute(0, 2, 3, 1)
