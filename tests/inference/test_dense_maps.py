"""Tiles are the whole, and logits at another size are interpolated as Pillow and PyTorch do it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dla
from dla.inference.dense_maps import input_pixels, logits_of, resized_bands
from dla.options import DenseOptions


def local(pixels_1HW3: np.ndarray) -> np.ndarray:
    """A network that sees 7 pixels around each, and its place on the grid of tiles."""
    x = torch.from_numpy(pixels_1HW3).float().permute(0, 3, 1, 2)
    return torch.nn.functional.avg_pool2d(x, 15, 1, 7, count_include_pad=False).numpy()


@pytest.mark.parametrize("size", [(600, 600), (1100, 513), (513, 2000), (512, 512), (769, 1)])
def test_tiles_are_the_whole(size: tuple[int, int]) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    bands = list(logits_of(photo, local, 512))
    whole = local(photo[None])[0]
    tiled = np.concatenate(bands, 1)
    assert tiled.shape == whole.shape
    # tiles blend with what they do not see at their border, where their weight is small
    assert np.abs(tiled - whole).max() < 0.02 * 255
    assert np.abs(tiled - whole).mean() < 0.01
    assert max(band.shape[1] for band in bands) <= 512


def test_tiles_begin_on_the_grid_of_the_coarsest_stride() -> None:
    seen: list[tuple[int, int, int]] = []
    photo = np.arange(1500, dtype=np.int64)[:, None, None] * np.ones((1, 1500, 3), np.int64)

    def compute(pixels_1HW3: np.ndarray) -> np.ndarray:
        seen.append((int(pixels_1HW3[0, 0, 0, 0]), *pixels_1HW3.shape[1:3]))
        return np.zeros((1, 2, *pixels_1HW3.shape[1:3]), np.float32)

    list(logits_of(photo, compute, 700))
    assert all(top % 32 == 0 and max(h, w) <= 700 for top, h, w in seen)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 60), st.integers(1, 60))
def test_logits_are_interpolated_as_pytorch_does(h: int, w: int, to_h: int, to_w: int) -> None:
    logits = np.random.default_rng(h * 31 + w).normal(size=(2, h, w)).astype(np.float32)
    found = np.concatenate(
        list(resized_bands(iter([logits[:, : h // 2], logits[:, h // 2 :]]), (h, w), (to_h, to_w))), 1
    )
    wanted = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (to_h, to_w), mode="bilinear")[0]
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_the_size_at_which_a_photo_is_seen() -> None:
    assert DenseOptions().input_size((640, 480), 360) == (360, 480)
    assert DenseOptions().input_size((640, 480), None) == (480, 640)
    assert DenseOptions("native").input_size((640, 480), 360) == (480, 640)
    assert DenseOptions(240).input_size((480, 640), 360) == (320, 240)
    assert DenseOptions(100).input_size((20000, 1), None) == (100, 2_000_000)


@pytest.mark.parametrize("given", [{"size": "small"}, {"size": 0}, {"tile": 64}])
def test_what_is_not_allowed(given: dict) -> None:
    with pytest.raises(dla.UsageError, match=next(iter(given))):
        DenseOptions(**given)


def test_a_photo_of_its_own_size_is_not_resized() -> None:
    from PIL import Image

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
    assert (input_pixels(photo, (20, 30), "bilinear") == np.asarray(photo)).all()
    small = np.asarray(photo.resize((15, 10), Image.Resampling.BILINEAR))
    assert (input_pixels(photo, (10, 15), "bilinear") == small).all()
