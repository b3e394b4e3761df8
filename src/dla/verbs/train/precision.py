"""Half precision where a recipe asks for it and the machine has the instructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dla.errors import UsageError

__all__ = ["Precision"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# by what torch.cpu.get_capabilities calls them: without one of these a CPU computes it by conversions, slower than fp32
_INSTRUCTIONS = {"bf16": ("avx512_bf16", "amx_bf16", "avx10_2", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fp16")}


class Precision:
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
        has = torch.cpu.get_capabilities()
        able = any(has.get(instruction) for instruction in _INSTRUCTIONS[name])
        lacks = f"this CPU has none of the instructions {', '.join(_INSTRUCTIONS[name])}"
    else:
        able, lacks = name == "fp16", f"{device.type} has no bf16 arithmetic"
    if not able:
        raise UsageError(f"compute.autocast is {name}, but {lacks}, so that it would be slower than without")
