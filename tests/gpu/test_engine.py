"""PyTorch as an engine on a GPU: the CPU's answers, kernel by kernel and by a CUDA graph."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dla
from dla.engines.cuda_graph import MOST_GRAPHS
from dla.engines.torch import TorchEngine
from support.tiny_answers import tiny_with_answers

pytestmark = pytest.mark.gpu
SCALE_SHIFT = dla.Preprocessing().scale_shift()


def pixels(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


@pytest.fixture
def net() -> nn.Module:
    return tiny_with_answers()


def test_a_gpu_gives_the_answers_of_the_cpu(net: nn.Module) -> None:
    expected = TorchEngine(net, *SCALE_SHIFT, "cpu").probabilities(pixels(8))
    ours = TorchEngine(net, *SCALE_SHIFT, "cuda")
    for _ in range(3):  # a CUDA graph is recorded in the second
        np.testing.assert_allclose(ours.probabilities(pixels(8)), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.probabilities(pixels(8)[:3]), expected[:3], rtol=0, atol=1e-4)


def test_bf16_on_a_gpu_is_near(net: nn.Module) -> None:
    expected = TorchEngine(net, *SCALE_SHIFT, "cpu").probabilities(pixels(8))
    ours = TorchEngine(net, *SCALE_SHIFT, "cuda", "bf16")
    for _ in range(3):
        assert 0 < np.abs(ours.probabilities(pixels(8)) - expected).max() < 0.05


def test_features_stay_when_the_next_batch_runs(net: nn.Module) -> None:
    """CUDA graphs write every batch to the same memory."""
    expected = TorchEngine(net, *SCALE_SHIFT, "cpu").features_at("level5")
    features = TorchEngine(net, *SCALE_SHIFT, "cuda").features_at("level5")
    found = [features(pixels(8, seed)) for seed in range(4)]
    for seed, run in enumerate(found):
        np.testing.assert_allclose(run, expected(pixels(8, seed)), rtol=1e-3, atol=1e-3)


def test_a_graph_is_captured_for_the_second_batch_of_a_shape_and_for_few_shapes(net: nn.Module) -> None:
    cpu, ours = TorchEngine(net, *SCALE_SHIFT, "cpu"), TorchEngine(net, *SCALE_SHIFT, "cuda")
    assert ours.graphs is not None
    for count in range(1, MOST_GRAPHS + 3):
        for seed in range(3):
            batch = pixels(count, seed)
            np.testing.assert_allclose(ours.probabilities(batch), cpu.probabilities(batch), rtol=0, atol=1e-4)
            captured = sum(graph is not None for graph in ours.graphs.captured.values())
            assert captured == min(count - (seed == 0), MOST_GRAPHS)


def test_threads_get_the_answers_to_their_own_photos(net: nn.Module) -> None:
    cpu, ours = TorchEngine(net, *SCALE_SHIFT, "cpu"), TorchEngine(net, *SCALE_SHIFT, "cuda")
    batches = [pixels(1, seed) for seed in range(64)]
    expected = [cpu.probabilities(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(ours.probabilities, batches), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_fp32_is_not_tf32(net: nn.Module) -> None:
    """TF32 would be off by about 1e-3 of the largest value."""
    exact = TorchEngine(net, *SCALE_SHIFT, "cpu").features_at("level5")(pixels(4))
    found = TorchEngine(net, *SCALE_SHIFT, "cuda").features_at("level5")(pixels(4))
    assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()
    assert torch.backends.cudnn.allow_tf32
