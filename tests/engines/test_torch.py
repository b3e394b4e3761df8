"""PyTorch as an engine: what it does on a GPU, as far as that shows without one. With one: tests/gpu."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed

import dla
from dla.engines import torch as engine
from dla.engines.torch import TorchEngine, worth_compiling
from support.oracle import randomise
from support.tiny import tiny

SCALE_SHIFT = dla.Preprocessing().scale_shift()


def pixels(count: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8)


@pytest.fixture
def net() -> nn.Module:
    net = tiny().eval()
    randomise(net)
    return net


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes that went through a compiled network, on any device; it computes as it would without."""
    shapes: list[torch.Size] = []

    def compile_(part: nn.Module, **settings: object) -> Callable[[Tensor], Tensor]:
        assert settings == {"mode": "reduce-overhead", "dynamic": False}
        return lambda x: (shapes.append(x.shape), part(x))[1]  # type: ignore[func-returns-value]

    monkeypatch.setattr(engine, "worth_compiling", lambda device, photos: True)
    monkeypatch.setattr(torch, "compile", compile_)
    return shapes


def test_what_is_worth_compiling() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert worth_compiling(gpu, 10_000)
    assert not worth_compiling(gpu, 9_999)
    assert not worth_compiling(gpu, None)
    assert not worth_compiling(cpu, 10_000)


def test_full_batches_are_compiled_and_the_last_is_not(net: nn.Module, compiled: list[torch.Size]) -> None:
    ours = TorchEngine(net, *SCALE_SHIFT, "cpu")
    ours.compiles = False
    expected = [ours.probabilities(pixels(count)) for count in (4, 4, 3)]
    ours.compiles = True
    for count, wanted in zip((4, 4, 3), expected, strict=True):
        np.testing.assert_array_equal(ours.probabilities(pixels(count)), wanted)
    ours.features_at("level3")(pixels(2))
    assert [shape[0] for shape in compiled] == [4, 4, 2]


def test_a_compiler_that_fails_costs_speed_alone(
    net: nn.Module, compiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fails(x: Tensor) -> Tensor:
        tried.append(len(x))
        raise BackendCompilerFailed(fails, RuntimeError("no triton"), None)

    monkeypatch.setattr(torch, "compile", lambda part, **_: fails)
    ours = TorchEngine(net, *SCALE_SHIFT, "cpu")
    found = [ours.probabilities(pixels(4)) for _ in range(2)]
    assert tried == [4]
    ours.compiled.clear()
    ours.compiles = False
    for one in found:
        np.testing.assert_array_equal(one, ours.probabilities(pixels(4)))


def test_fp32_is_not_tf32_while_it_runs_and_the_flag_is_set_back(net: nn.Module) -> None:
    seen: list[bool] = []
    ours = TorchEngine(net, *SCALE_SHIFT, "cpu")
    ours.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        ours.probabilities(pixels(1))
        assert seen == [False]
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_of_several_threads_the_last_one_sets_the_flag_back(net: nn.Module) -> None:
    ours, both, seen = TorchEngine(net, *SCALE_SHIFT, "cpu"), Barrier(2), []

    def pause(*_: object) -> None:
        both.wait(10)
        seen.append(torch.backends.cudnn.allow_tf32)

    ours.network.register_forward_hook(pause)
    assert torch.backends.cudnn.allow_tf32
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ours.probabilities, [pixels(1)] * 20))
    assert seen == [False] * 20
    assert torch.backends.cudnn.allow_tf32
