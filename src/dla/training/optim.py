"""Parameters in groups, and what steps them."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dla.engines.cpu import HALF_PRECISION, has_half_precision
from dla.errors import UsageError
from dla.models.dla import DLA
from dla.training.recipe import EmaConfig, Recipe

__all__ = [
    "Autocast",
    "build_optimizer",
    "layer_ranks",
    "learning_rate",
    "load_optimizer_state",
    "make_ema",
    "optimizer_state",
    "parameter_groups",
    "set_rate",
]


def build_optimizer(network: DLA, recipe: Recipe) -> torch.optim.Optimizer:
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


def learning_rate(recipe: Recipe, progress_epochs: float) -> float:
    """The rate after `progress_epochs` passes over the photos, fractions included."""
    s = recipe.schedule
    if progress_epochs < s.warmup_epochs:
        return recipe.lr * (s.warmup_from + (1 - s.warmup_from) * progress_epochs / s.warmup_epochs)
    if s.name == "constant":
        return recipe.lr
    if s.name == "steps":
        return recipe.lr * s.factor ** math.floor(progress_epochs / s.every + 1e-9)
    share = (progress_epochs - s.warmup_epochs) / max(recipe.epochs - s.warmup_epochs, 1e-9)
    return recipe.lr * (s.end + (1 - s.end) * 0.5 * (1 + math.cos(math.pi * share)))


def make_ema(network: nn.Module, recipe: EmaConfig) -> AveragedModel | None:
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


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Autocast:
    """How a step computes: in float32, or with convolutions in half precision and a loss scaled for fp16.

    Raises:
        UsageError: the machine has no instructions for it.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _TYPES.get(name)
        self.device = device
        if self.dtype is not None:
            _refuse(name, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
        """Step by the gradients, shortened to `clip_norm` if it is above 0; their length before that.

        Where the length is not finite no step is made. fp16's scaler expects that now and then: it makes the scale
        smaller, and the length is told as 0.
        """
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        length = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, length)
        norm = float(length)
        finite = norm - norm == 0
        if finite or self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        return norm if finite or not self.scaler.is_enabled() else 0.0

    def state(self) -> dict[str, Any]:
        """The scaler's numbers; none without one."""
        return self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state:
            self.scaler.load_state_dict(dict(state))


def _refuse(name: str, device: torch.device) -> None:
    if device.type == "cuda":
        able = name == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
        lacks = "this GPU has no bf16 arithmetic"
    elif device.type == "cpu":
        able = has_half_precision(name)
        lacks = f"this CPU has none of the instructions {', '.join(HALF_PRECISION[name])}"
    else:
        able, lacks = name == "fp16", f"{device.type} has no bf16 arithmetic"
    if not able:
        raise UsageError(f"compute.autocast is {name}, but {lacks}, so that it would be slower than without")
