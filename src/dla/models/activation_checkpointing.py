"""Activation checkpointing: parts of a network that are computed again in the backward pass, in place of being kept.

It is put around the parts from outside: no `forward` knows of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dla.models.tree import Tree

__all__ = ["set_checkpointing", "without_checkpointing"]


Net = TypeVar("Net", bound=nn.Module)


def set_checkpointing(stages: Iterable[nn.Module], enable: bool) -> None:
    """Wrap `forward` of the stages, of a tree those of its blocks, nodes, projections and poolings; or unwrap them.

    In training, a wrapped part keeps nothing but its inputs for the backward pass. The modules and their names stay.
    """
    for stage in stages:
        for part in _parts(stage):
            if not enable:
                _unwrap(part)
            elif not isinstance(part.forward, _Recomputed):
                part.forward = _Recomputed(part)


def without_checkpointing(net: Net) -> Net:
    """A network without wrapped parts: `net` if it has none, else a copy of it with the same tensors."""
    if not any(isinstance(part.forward, _Recomputed) for part in net.modules()):
        return net
    plain = copy.deepcopy(net, {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())})
    for part in plain.modules():
        _unwrap(part)
    return plain


def _unwrap(part: nn.Module) -> None:
    if isinstance(part.forward, _Recomputed):
        part.forward = part.forward.plain


def _parts(stage: nn.Module) -> Iterator[nn.Module]:
    if isinstance(stage, Tree):
        for child in stage.children():
            yield from _parts(child)
    elif not isinstance(stage, nn.Identity):
        yield stage


class _Recomputed:
    """Stands in for the `forward` of a part, `plain`. An object, because a closure could not be pickled or copied."""

    def __init__(self, part: nn.Module) -> None:
        self.part, self.plain = part, part.forward

    def __call__(self, *inputs: Tensor | list[Tensor]) -> Tensor:
        if not (self.part.training and torch.is_grad_enabled()):
            return self.plain(*inputs)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():  # a compiled backward pass changes no statistics, and takes no context
            return checkpoint(self.plain, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return checkpoint(self.plain, *inputs, use_reentrant=False, context_fn=partial(_twice, self.part))  # type: ignore[no-any-return]


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
