"""Half precision: refused with the reason where the machine cannot, and in a step where it can."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dla
from dla.training.optim import Autocast

CPU = torch.device("cpu")


def with_instructions(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("dla.engines.cpu.instructions", lambda: ("avx2", *names))


@pytest.mark.parametrize(("name", "instruction"), [("bf16", "avx512_bf16"), ("fp16", "avx512_fp16")])
def test_it_is_refused_without_the_instructions(name: str, instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_instructions(monkeypatch)
    with pytest.raises(dla.UsageError, match=f"compute.autocast is {name}, but this CPU has none of .*{instruction}"):
        Autocast(name, CPU)
    with_instructions(monkeypatch, instruction)
    Autocast(name, CPU)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_step_is_near_the_one_in_float32(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with_instructions(monkeypatch, "avx512_bf16", "avx512_fp16")
    plain, half = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 30 * 30, 5)) for _ in range(2))
    half.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 32, 32)
    for network, precision in ((plain, Autocast("none", CPU)), (half, Autocast(name, CPU))):
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
        with precision.autocast():
            out = network(x)
        assert out.dtype == (torch.float32 if network is plain else dtype)
        precision.backward(out.float().square().mean())
        length = precision.step(optimizer, 0.0)
        wanted = sum(p.grad.square().sum() for p in network.parameters()).sqrt()
        assert length == pytest.approx(wanted.item(), rel=1e-4)
    grads = [torch.cat([p.grad.flatten() for p in n.parameters()]) for n in (plain, half)]
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.98


def test_fp16_steps_over_an_overflow_and_remembers_its_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    with_instructions(monkeypatch, "avx512_fp16")
    weight, precision = torch.nn.Parameter(torch.ones(3)), Autocast("fp16", CPU)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    precision.backward((weight * torch.inf).sum())
    assert precision.step(optimizer, 0.0) == 0.0
    assert torch.equal(weight, torch.ones(3))
    again = Autocast("fp16", CPU)
    again.load_state(precision.state())
    assert again.state() == precision.state()
    assert again.state()["scale"] == 2.0**15
