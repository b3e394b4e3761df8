"""Parameters in groups, and what steps them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dla.nets.backbone import DLA
from dla.recipes.schema import Recipe

__all__ = ["layer_ranks", "load_optimizer_state", "make_optimizer", "optimizer_state", "parameter_groups", "set_rate"]


def make_optimizer(network: DLA, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over the parameters that learn, in PyTorch's fused form where the device has it."""
    o = recipe.optimizer
    groups = parameter_groups(network, o.weight_decay, o.decay_norms, o.layer_decay)
    fused = next(network.parameters()).device.type in ("cpu", "cuda", "mps")
    if o.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=o.momentum, nesterov=o.nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=o.betas, fused=fused)


def parameter_groups(
    network: DLA, weight_decay: float, decay_norms: bool = False, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """The parameters that learn, sorted by weight decay and by `scale`, the share of the learning rate that is theirs.

    The classifier has the whole rate, each layer before it `layer_decay` times that of the next.
    """
    ranks = layer_ranks(network) if layer_decay < 1 else defaultdict(int)
    last = max(ranks.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if parameter.ndim > 1 or decay_norms else 0.0
        scale = layer_decay ** (last - ranks[name])
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def layer_ranks(network: DLA) -> dict[str, int]:
    """Each parameter's layer, from the stem, 0, to the classifier, by the network's `group_matcher` (timm's rule)."""
    rules: list[tuple[re.Pattern[str], int, Iterable[float]]] = []
    for ordinal, spec in enumerate(network.group_matcher().values()):
        for pattern, suffix in [(spec, None)] if isinstance(spec, str) else spec:
            rules.append((re.compile(pattern), ordinal, suffix or ()))

    def place(name: str) -> tuple[float, ...]:
        for pattern, ordinal, suffix in rules:
            if found := pattern.match(name):
                return ordinal, *map(float, found.groups()), *suffix
        return (math.inf,)

    places = {name: place(name) for name, _ in network.named_parameters()}
    order = {p: rank for rank, p in enumerate(sorted(set(places.values())))}
    return {name: order[p] for name, p in places.items()}


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step have this learning rate, each group its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter, as `kind.parameter`."""
    return {
        f"{kind}.{name}": value
        for name, parameter in network.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give the optimizer back what `optimizer_state` told."""
    parameters = dict(network.named_parameters())
    for key, value in state.items():
        kind, _, name = key.partition(".")
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)
