"""PyTorch as an engine: what it does on a GPU, as far as that shows without one; with one, its answers."""

from __future__ import annotations

from collections.abc import Callable
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
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


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


@ON_GPU
@pytest.mark.parametrize("photos", [None, 10_000])
def test_a_gpu_gives_the_answers_of_the_cpu(net: nn.Module, photos: int | None) -> None:
    expected = TorchEngine(net, *SCALE_SHIFT, "cpu").probabilities(pixels(8))
    ours = TorchEngine(net, *SCALE_SHIFT, "cuda", photos=photos)
    for _ in range(3):  # a CUDA graph is recorded in the second
        np.testing.assert_allclose(ours.probabilities(pixels(8)), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.probabilities(pixels(8)[:3]), expected[:3], rtol=0, atol=1e-4)
    assert not photos or all(part.fast is not None for part in ours.compiled.values())


@ON_GPU
@pytest.mark.parametrize("photos", [None, 10_000])
def test_bf16_on_a_gpu_is_near(net: nn.Module, photos: int | None) -> None:
    expected = TorchEngine(net, *SCALE_SHIFT, "cpu").probabilities(pixels(8))
    found = TorchEngine(net, *SCALE_SHIFT, "cuda", "bf16", photos=photos).probabilities(pixels(8))
    assert 0 < np.abs(found - expected).max() < 0.05


@ON_GPU
def test_features_stay_when_the_next_batch_runs(net: nn.Module) -> None:
    """CUDA graphs write every batch to the same memory."""
    ours = TorchEngine(net, *SCALE_SHIFT, "cuda", photos=10_000)
    features = ours.features_at("level5")
    runs = [features(pixels(8) // (i + 1)) for i in range(4)]
    again = features(pixels(8))
    np.testing.assert_array_equal(runs[0].argmax(), again.argmax())
    assert len({run.tobytes() for run in runs}) == 4
