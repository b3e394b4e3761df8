"""The running average against its definition in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dla.training.optim import make_ema
from dla.training.recipe import EmaConfig
from support.tiny import tiny


@pytest.mark.parametrize("warmup", [False, True])
def test_it_follows_by_its_decay(warmup: bool) -> None:
    network = tiny()
    average = make_ema(network, EmaConfig(0.7, warmup))
    assert average is not None
    wanted = None
    for n in range(6):
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else torch.tensor(n))
        average.update_parameters(network)
        now = {k: v.double().numpy().copy() for k, v in network.state_dict().items()}
        decay = min(0.7, (1 + n) / (10 + n)) if warmup else 0.7
        wanted = now if wanted is None else {
            k: v if k.endswith("num_batches_tracked") else decay * wanted[k] + (1 - decay) * v for k, v in now.items()
        }  # fmt: skip
    for name, tensor in average.module.state_dict().items():
        np.testing.assert_allclose(tensor.numpy(), wanted[name], rtol=1e-4, atol=1e-5)


def test_without_decay_there_is_none() -> None:
    assert make_ema(tiny(), EmaConfig(0.0)) is None
