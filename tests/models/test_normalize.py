"""Pixels to a network's input, by torch, beside the formula written out in NumPy."""

from __future__ import annotations

import numpy as np
import torch

from dla.images.preprocessing import Preprocessing
from dla.models.normalize import Normalize


def test_pixels_become_the_network_s_input_and_come_back() -> None:
    preprocessing = Preprocessing()
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)
    normalize = Normalize(*preprocessing.scale_shift())
    x_N3HW = normalize(torch.from_numpy(pixels_NHW3))
    expected = (pixels_NHW3 / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    assert x_N3HW.dtype == torch.float32
    assert x_N3HW.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(x_N3HW.permute(0, 2, 3, 1).numpy(), expected, rtol=0, atol=1e-6)
    assert (normalize.pixels(x_N3HW).numpy() == pixels_NHW3).all()
    floats_N3HW = torch.from_numpy(pixels_NHW3).permute(0, 3, 1, 2).float()
    assert torch.equal(normalize.normalize_(floats_N3HW), x_N3HW)
    assert torch.equal(floats_N3HW, x_N3HW)  # in place
