"""The running average of a network's weights (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dla.recipes.schema import Average

__all__ = ["averaged"]


def averaged(network: nn.Module, recipe: Average) -> AveragedModel | None:
    """A copy of the network that follows it at each `update_parameters`, statistics included; None for no average."""
    if recipe.decay == 0:
        return None

    @torch.no_grad()
    def follow(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        decay = min(recipe.decay, (1 + n) / (10 + n)) if recipe.warmup else recipe.decay
        if average[0].is_floating_point():
            torch._foreach_lerp_(list(average), list(current), 1 - decay)
        else:
            torch._foreach_copy_(list(average), list(current))

    return AveragedModel(network, multi_avg_fn=follow, use_buffers=True)
