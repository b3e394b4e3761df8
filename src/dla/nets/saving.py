"""Gradient checkpointing: parts of a network that are computed again in the backward pass, in place of being kept."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["run_part"]


def run_part(part: nn.Module, *inputs: Tensor | tuple[Tensor, ...], saving: bool) -> Tensor:
    """`part(*inputs)`; in training, `saving` keeps nothing of it for the backward pass but its inputs."""
    if not (saving and part.training and torch.is_grad_enabled()) or isinstance(part, nn.Identity):
        return part(*inputs)  # type: ignore[no-any-return]
    if torch.compiler.is_compiling():  # a compiled backward pass changes no statistics, and takes no context
        return checkpoint(part, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
    return checkpoint(part, *inputs, use_reentrant=False, context_fn=partial(_twice, part))  # type: ignore[no-any-return]


def _twice(part: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """For checkpointing: the second computation of a part must not count in its running statistics again."""
    return nullcontext(), _StatisticsUntouched(part)


class _StatisticsUntouched:
    """Norms compute as in training, but remember nothing. Entered once a backward pass: twice if the graph is kept."""

    def __init__(self, part: nn.Module) -> None:
        self.norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            # Without statistics the norm would save fewer tensors, and the checkpoint counts them.
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
