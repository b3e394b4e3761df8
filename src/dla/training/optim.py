"""Parameter groups, optimizer, learning-rate schedule, weight average and mixed precision."""

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
from dla.models.dense import Dense
from dla.models.dla import DLA
from dla.training.recipe import EmaConfig, Recipe


def build_optimizer(network: DLA | Dense, recipe: Recipe) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the trainable parameters, fused where the device supports it."""
    o = recipe.optimizer
    groups = parameter_groups(network, o.weight_decay, o.decay_norms, o.layer_decay)
    fused = next(network.parameters()).device.type in ("cpu", "cuda", "mps")
    if o.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=o.momentum, nesterov=o.nesterov, fused=fused)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=o.betas, fused=fused)


def parameter_groups(
    network: DLA | Dense, weight_decay: float, decay_norms: bool = False, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Group the trainable parameters by weight decay and by `scale`, their factor on the learning rate.

    The scale is 1 for the classifier and, for each layer before it, `layer_decay` times that of the next layer.
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


def layer_ranks(network: DLA | Dense) -> dict[str, int]:
    """Return the layer of each parameter, 0 for the stem, by the network's `group_matcher` (timm's rule)."""
    rules: list[tuple[re.Pattern[str], int, Iterable[float]]] = []
    for ordinal, spec in enumerate(network.group_matcher().values()):
        for pattern, suffix in [(spec, None)] if isinstance(spec, str) else spec:
            rules.append((re.compile(pattern), ordinal, suffix or ()))

    def place(name: str) -> tuple[float, ...]:
        for pattern, ordinal, suffix in rules:
            if match := pattern.match(name):
                return ordinal, *map(float, match.groups()), *suffix
        return (math.inf,)

    places = {name: place(name) for name, _ in network.named_parameters()}
    order = {p: rank for rank, p in enumerate(sorted(set(places.values())))}
    return {name: order[p] for name, p in places.items()}


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step: `lr` times each group's scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Return the optimizer's tensors by name, as in "momentum_buffer.fc.weight"."""
    return {
        f"{kind}.{name}": value
        for name, parameter in network.named_parameters()
        for kind, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_state` returned."""
    parameters = dict(network.named_parameters())
    for key, value in state.items():
        kind, _, name = key.partition(".")
        optimizer.state[parameters[name]][kind] = value.to(parameters[name].device)


def learning_rate(recipe: Recipe, progress_epochs: float) -> float:
    """Return the learning rate after `progress_epochs` epochs, which may be a fraction."""
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
    """Return an exponential moving average of the network, batch-norm statistics included; None if `decay` is 0."""
    if recipe.decay == 0:
        return None

    @torch.no_grad()
    def update(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        decay = min(recipe.decay, (1 + n) / (10 + n)) if recipe.warmup else recipe.decay
        if average[0].is_floating_point():
            torch._foreach_lerp_(list(average), list(current), 1 - decay)
        else:
            torch._foreach_copy_(list(average), list(current))

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True)


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Autocast:
    """Mixed precision: an autocast context, with loss scaling for fp16.

    Raises:
        UsageError: the device does not support the precision.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = _TYPES.get(name)
        self.device = device
        if self.dtype is not None:
            _check_support(name, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """Return the context for the forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass of the loss, scaled for fp16."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, clip_norm: float) -> float:
        """Clip the gradients to `clip_norm` (0: off) and step; return their L2 norm before clipping.

        There is no step if the norm is not finite. With fp16 this happens now and then: the scaler lowers its scale,
        and the returned norm is 0.
        """
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, total_norm)
        norm = float(total_norm)
        finite = norm - norm == 0
        if finite or self.scaler.is_enabled():
            self.scaler.step(optimizer)
            self.scaler.update()
        return norm if finite or not self.scaler.is_enabled() else 0.0

    def state(self) -> dict[str, Any]:
        """Return the state of the fp16 scaler; empty for other precisions."""
        return self.scaler.state_dict()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned."""
        if state:
            self.scaler.load_state_dict(dict(state))


def _check_support(name: str, device: torch.device) -> None:
    if device.type == "cuda":
        supported = name == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
        reason = "this GPU has no bf16 arithmetic"
    elif device.type == "cpu":
        supported = has_half_precision(name)
        reason = f"this CPU has none of the instructions {', '.join(HALF_PRECISION[name])}"
    else:
        supported, reason = name == "fp16", f"{device.type} has no bf16 arithmetic"
    if not supported:
        raise UsageError(f"compute.autocast is {name}, but {reason}. It would be slower than float32; leave it out")
