"""PyTorch as an engine on a GPU, compiled as for a large folder: the CPU's answers."""

from __future__ import annotations

import numpy as np
import pytest

import dla
from dla.engines.torch import COMPILED_FROM, TorchEngine
from dla.options import Precision
from support.tiny_answers import tiny_with_answers

pytestmark = pytest.mark.gpu
SCALE_SHIFT = dla.Preprocessing().scale_shift()


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_a_compiled_network_gives_the_answers_of_the_cpu(precision: Precision, near: float) -> None:
    """CUDA graphs write every batch to the same memory; the last batch is smaller and goes as it is."""
    net = tiny_with_answers()
    cpu = TorchEngine(net, *SCALE_SHIFT, "cpu")
    ours = TorchEngine(net, *SCALE_SHIFT, "cuda", precision, photos=COMPILED_FROM)
    batches = [np.random.default_rng(i).integers(0, 256, (n, 64, 64, 3), np.uint8) for i, n in enumerate((8, 8, 8, 3))]
    found = [ours.probabilities(batch) for batch in batches]
    for batch, probabilities in zip(batches, found, strict=True):
        assert 0 < np.abs(probabilities - cpu.probabilities(batch)).max() < near
    assert all(part.fast is not None for part in ours.compiled.values())
