"""How foreign files spell a state dict: containers, prefixes, order, projections that nothing depends on.

Pure functions on dictionaries; no file is touched here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dla.errors import DamagedError
from dla.nets.tree import Tree

__all__ = ["CONTAINERS", "authors_state", "dead_projections", "plain_names", "unwrap"]

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # averaged weights first, as timm does
PREFIXES = ("module.", "_orig_mod.")  # of data-parallel and of compiled networks


def unwrap(loaded: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], str]:
    """The state dict inside a training checkpoint, and the key it was under ('' when it was not wrapped)."""
    for key in CONTAINERS:
        if isinstance(loaded.get(key), Mapping):
            return loaded[key], key
    return loaded, ""


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the prefixes that wrappers put before every name, however often.

    Raises:
        DamagedError: two names become one.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name
        while short.startswith(PREFIXES):
            short = short.split(".", 1)[1]
        if short in plain:
            raise DamagedError(f'"{short}" is there twice, with and without a prefix ({", ".join(PREFIXES)}).')
        plain[short] = tensor
    return plain


def dead_projections(model: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of the tensors that the authors' files have and no output depends on.

    There every tree that changes the number of channels owns a projection, but only the innermost one, whose
    first block adds it, uses its own.
    """
    dead: dict[str, torch.Size] = {}
    for path, tree in model.named_modules():
        if isinstance(tree, Tree) and tree.n > 1:
            innermost: nn.Module = tree
            while isinstance(innermost, Tree) and innermost.n > 1:
                innermost = innermost.tree1
            project = innermost.project
            assert isinstance(project, nn.Module)
            dead.update({f"{path}.project.{name}": tensor.shape for name, tensor in project.state_dict().items()})
    return dead


def authors_state(model: nn.Module) -> dict[str, Tensor]:
    """The network's state dict as the authors' code names and orders it, for its strict loading.

    There the projection comes last in each tree, and the projections that no output depends on are present too: they
    get the values that a network begins with, the same ones each time.
    """
    dead = dead_projections(model)
    random = torch.Generator().manual_seed(0)
    state = model.state_dict() | {name: _begun(name, shape, random) for name, shape in dead.items()}
    return {name: state[name] for path, child in model.named_children() for name in _authors_order(child, path, dead)}


def _authors_order(module: nn.Module, path: str, dead: Mapping[str, torch.Size]) -> Iterator[str]:
    if not isinstance(module, Tree):
        yield from (f"{path}.{name}" for name in module.state_dict())
        return
    for name, child in sorted(module.named_children(), key=lambda named: named[0] == "project"):
        yield from _authors_order(child, f"{path}.{name}", dead)
    if module.n > 1:
        yield from (name for name in dead if name.startswith(f"{path}.project."))


def _begun(name: str, shape: torch.Size, random: torch.Generator) -> Tensor:
    """What a tensor of a projection (a 1x1 convolution and its batch-norm) is before any training."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if len(shape) == 4:
        return torch.empty(shape).normal_(0, math.sqrt(2 / shape[0]), generator=random)
    return torch.ones(shape) if name.endswith(("weight", "running_var")) else torch.zeros(shape)
