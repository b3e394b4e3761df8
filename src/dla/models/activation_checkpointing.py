"""Activation checkpointing: recompute activations in the backward pass instead of storing them.

The `forward` methods are wrapped from outside; no network code depends on it.
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

Net = TypeVar("Net", bound=nn.Module)


def set_checkpointing(stages: Iterable[nn.Module], enable: bool) -> None:
    """Wrap, or unwrap, the `forward` of each stage; for a `Tree`, of its blocks, nodes, projections and poolings.

    In training, a wrapped part stores only its inputs for the backward pass. Modules and their names are unchanged.
    """
    for stage in stages:
        for part in _parts(stage):
            if not enable:
                _unwrap(part)
            elif not isinstance(part.forward, _Recomputed):
                part.forward = _Recomputed(part)


def without_checkpointing(net: Net) -> Net:
    """Return `net` if no part of it is wrapped, else an unwrapped copy that shares its tensors."""
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
    """The wrapped `forward` of a part, `plain` unwrapped. A class, because closures cannot be pickled."""

    def __init__(self, part: nn.Module) -> None:
        self.part, self.plain = part, part.forward

    def __call__(self, *inputs: Tensor | list[Tensor]) -> Tensor:
        if not (self.part.training and torch.is_grad_enabled()):
            return self.plain(*inputs)  # type: ignore[no-any-return]
        if torch.compiler.is_compiling():  # a compiled backward pass updates no statistics and supports no context
            return checkpoint(self.plain, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
        return checkpoint(self.plain, *inputs, use_reentrant=False, context_fn=partial(_twice, self.part))  # type: ignore[no-any-return]


def _twice(part: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return checkpoint's two contexts: the recomputation must not update the running statistics again."""
    return nullcontext(), _StatisticsUntouched(part)


class _StatisticsUntouched:
    """Freeze the running statistics of norms in training mode. Entered once per backward pass through the graph."""

    def __init__(self, part: nn.Module) -> None:
        self.norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]

    def __enter__(self) -> None:
        self.saved = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            # Without statistics the norm would save fewer tensors, and checkpoint checks their number.
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
