"""PyTorch's own file format of networks that run without the code that made them: `torch.export`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from dla.engines.base import Array
from dla.nets.fold import fold_batch_norm

__all__ = ["to_program"]


class _Answer(nn.Module):
    def __init__(self, network: nn.Module, scale_3: Array, shift_3: Array, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature
        self.scale_311 = nn.Buffer(torch.from_numpy(scale_3)[:, None, None])
        self.shift_311 = nn.Buffer(torch.from_numpy(shift_3)[:, None, None])

    def forward(self, pixels_NHW3: Tensor) -> Tensor:
        x_N3HW = pixels_NHW3.permute(0, 3, 1, 2).float() * self.scale_311 + self.shift_311
        probabilities_NK: Tensor = (self.network(x_N3HW) / self.temperature).softmax(1)
        return probabilities_NK


def to_program(model: nn.Module, scale_3: Array, shift_3: Array, temperature: float, size: tuple[int, int]) -> Any:
    """A `torch.export.ExportedProgram` from pixels that a network sees, uint8 (N, H, W, 3), to probabilities (N, K).

    N is free, and so are H and W above the network's stride; where `size`, (height, width), is not above it, they are
    those.
    """
    answer = _Answer(fold_batch_norm(model), scale_3, shift_3, temperature).eval()
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    return export(answer, (example,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},))
