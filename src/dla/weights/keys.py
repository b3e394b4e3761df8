"""Identify weights: compare tensors with a network's by name and shape."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from dla.errors import DamagedError
from dla.models.build import build
from dla.models.dense import Dense
from dla.models.registry import TABLE
from dla.models.tree import Tree

FIRST_CONV, HEAD = "base_layer.0.weight", "fc."
COUNTER = "num_batches_tracked"
BASE, DENSE_HEAD = "base.", "fc.0."  # the backbone and the classifier of a dense network

Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state dict by name."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def check_match(model: nn.Module, wanted: Shapes, given: Shapes, where: str) -> None:
    """Check that tensors have the names and shapes of the network.

    Raises:
        DamagedError: which tensors are missing, unknown or of another shape, and the network that they fit, if any.
    """
    missing = [name for name in wanted if name not in given]
    unknown = sorted(name for name in given if name not in wanted)
    other = [name for name in wanted if name in given and given[name] != wanted[name]]
    if not (missing or unknown or other):
        return
    shapes = [f"{name}: {_size(given[name])} in the file, {_size(wanted[name])} in the network" for name in other]
    kinds = ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape"))
    parts = [f"{len(names)} tensors {kind} ({_few(names)})" for names, kind in kinds if names]
    name = getattr(model, "pretrained_cfg", {}).get("architecture", "this network")
    hint = _hint(given, missing + unknown + other, name)
    raise DamagedError(f"{where} does not hold the weights of {name}: {'; '.join(parts)}.{hint}")


def _hint(given: Shapes, differing: Sequence[str], name: str) -> str:
    fits = [fit for fit in candidate_networks(given) if fit != name]
    if fits:
        return f" These are the weights of {' or '.join(fits)}."
    head = given.get(f"{HEAD}weight")
    if head and all(n.startswith(HEAD) for n in differing):
        return f" num_classes={head[0]} loads its classifier, new_head=True replaces it."
    return ""


def _few(items: Sequence[str], most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"


def candidate_networks(shapes: Shapes) -> list[str]:
    """Return the networks of the table that these tensors fit exactly, for any number of classes and input channels.

    The authors' unused projections and missing batch-norm counters are ignored.
    """
    first = shapes.get(FIRST_CONV, ())
    if len(first) != 4:
        return []
    fits = []
    for name, row in TABLE.items():
        if first[0] != row.channels[0] or shapes.get("level5.root.bn.weight") != (row.channels[5],):
            continue  # a cheap check that leaves few to compare
        body, unused = _skeleton(name)
        body = body | {FIRST_CONV: (first[0], first[1], *body[FIRST_CONV][2:])}
        tensors = {n: shape for n, shape in shapes.items() if not n.endswith(COUNTER) and not n.startswith(HEAD)}
        if {n: shape for n, shape in tensors.items() if unused.get(n) != shape} == body:
            fits.append(name)
    return fits


@cache
def _skeleton(architecture: str) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the shapes of a network without its classifier, and of the authors' unused projections in it, by name."""
    with torch.device("meta"):
        model = build(architecture, num_classes=0)
    body = {name: shape for name, shape in shapes_of(model.state_dict()).items() if not name.endswith(COUNTER)}
    return body, {name: tuple(shape) for name, shape in unused_projections(model).items()}


_DECODER = re.compile(r"dla_up\.(ida_\d+)\.")
_COARSEST = 32


def is_dense(shapes: Shapes) -> bool:
    """Return whether these are the tensors of a dense network: a backbone, a decoder and a classifier of pixels."""
    return f"{BASE}{FIRST_CONV}" in shapes and f"{DENSE_HEAD}weight" in shapes


def dense_layout(shapes: Shapes) -> dict[str, Any]:
    """Return `down_ratio` and `up` of a dense network, as in a config, from its tensors.

    The decoder has one IDA for each halving from `down_ratio` to stride 32; only the authors' upsampling has weights.
    """
    steps = {match[1] for name in shapes if (match := _DECODER.match(name))}
    return {"down_ratio": _COARSEST >> len(steps), "up": "authors" if "up.weight" in shapes else "bilinear"}


AVERAGED = ("state_dict_ema", "model_ema", "params_ema")
# Averaged weights first, as timm does.
CONTAINERS = (*AVERAGED, "state_dict", "model", "model_state_dict", "net", "params", "module")
_DEEPEST = 3
_COUNT = "n_averaged"  # beside the weights in PyTorch's AveragedModel
PREFIXES = ("module.", "_orig_mod.")  # of data-parallel and compiled networks


def unwrap(loaded: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], str]:
    """Return the state dict in a training checkpoint and its key there ('' if it is not wrapped)."""
    found = ""
    for _ in range(_DEEPEST):
        key = next((key for key in CONTAINERS if isinstance(loaded.get(key), Mapping)), "")
        if not key:
            break
        loaded, found = loaded[key], key if found not in AVERAGED else found
    return loaded, found


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict without what wrappers add: prefixes of names, also repeated, and `AveragedModel`'s count.

    Raises:
        DamagedError: if two names become the same.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name
        while short.startswith(PREFIXES):
            short = short.split(".", 1)[1]
        if short == _COUNT and tensor.ndim == 0:
            continue
        if short in plain:
            raise DamagedError(f'"{short}" occurs twice, with and without a prefix ({", ".join(PREFIXES)}).')
        plain[short] = tensor
    return plain


def unused_projections(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of the tensors in the authors' files that no output depends on, by name.

    In the authors' code every tree that changes the number of channels has a projection, but only the innermost
    tree's is used, by its first block.
    """
    unused: dict[str, torch.Size] = {}
    for path, tree in model.named_modules():
        if isinstance(tree, Tree) and tree.n > 1:
            innermost: nn.Module = tree
            while isinstance(innermost, Tree) and innermost.n > 1:
                innermost = innermost.tree1
            project = innermost.project
            assert isinstance(project, nn.Module)
            unused.update({f"{path}.project.{name}": tensor.shape for name, tensor in project.state_dict().items()})
    return unused


def authors_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the network's state dict with the names and order of the authors' code, for strict loading.

    There the projection comes last in each tree, and the unused projections are present too, as is the classifier of
    the backbone in a dense network; these get reproducible initial values.
    """
    unused = unused_projections(model)
    if isinstance(model, Dense):
        channels = model.dla_up.channels[-1]
        unused |= {
            f"{BASE}{HEAD}weight": torch.Size((_CLASSES, channels, 1, 1)),
            f"{BASE}{HEAD}bias": torch.Size((_CLASSES,)),
        }
    random = torch.Generator().manual_seed(0)
    state = model.state_dict() | {name: _initial_value(name, shape, random) for name, shape in unused.items()}
    return {name: state[name] for name in _authors_order(model, "", unused)}


_CLASSES = 1000  # of the backbone of a dense network


def _authors_order(module: nn.Module, path: str, unused: Mapping[str, torch.Size]) -> Iterator[str]:
    """Yield the names of the tensors of the module at `path`, which ends with a point, as its prefix."""
    if isinstance(module, Tree):
        for name, child in sorted(module.named_children(), key=lambda named: named[0] == "project"):
            yield from _authors_order(child, f"{path}{name}.", unused)
        if module.n > 1:
            yield from (name for name in unused if name.startswith(f"{path}project."))
    elif any(isinstance(part, Tree) for part in module.modules()):
        for name, child in module.named_children():
            yield from _authors_order(child, f"{path}{name}.", unused)
        yield from (name for name in unused if path and name.startswith(f"{path}{HEAD}"))
    else:
        yield from (f"{path}{name}" for name in module.state_dict())


def _initial_value(name: str, shape: torch.Size, random: torch.Generator) -> Tensor:
    """Return the initial value of a tensor of a projection (a 1x1 convolution and its batch-norm) or a classifier."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if len(shape) == 4:
        return torch.empty(shape).normal_(0, math.sqrt(2 / shape[0]), generator=random)
    return torch.ones(shape) if name.endswith(("weight", "running_var")) else torch.zeros(shape)
