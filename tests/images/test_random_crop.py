"""Random crops: inside the photo, of the share and shape asked for, and the same for the same seed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dla.images.random_crop import crop_generator, random_crop, reflect_pad

sides = st.integers(1, 3000)


@given(sides, sides, st.integers(0, 2**32 - 1))
def test_a_crop_is_inside(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = random_crop((width, height), (0.08, 1), (0.75, 4 / 3), crop_generator(seed, 0, 0, 0))
    assert 0 <= left < right <= width + 1e-9 * width
    assert 0 <= top < bottom <= height + 1e-9 * height


def test_share_and_shape_are_as_asked() -> None:
    generator = crop_generator(1, 2, 3, 4)
    boxes = np.array([random_crop((400, 400), (0.2, 0.6), (0.7, 1.4), generator) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, aspect = w * h / 400**2, w / h
    assert share.min() >= 0.2 - 1e-9
    assert share.max() <= 0.6 + 1e-9
    assert aspect.min() >= 0.7 - 1e-9
    assert aspect.max() <= 1.4 + 1e-9
    # uniform, log-uniform: means within four standard errors
    assert abs(share.mean() - 0.4) < 4 * 0.4 / 12**0.5 / 4000**0.5
    middle = (np.log(0.7) + np.log(1.4)) / 2
    assert abs(np.log(aspect).mean() - middle) < 4 * np.log(2) / 12**0.5 / 4000**0.5


def test_what_never_fits_is_the_central_square() -> None:
    assert random_crop((1000, 10), (0.9, 1), (1, 1), crop_generator(0, 0, 0, 0)) == (495, 0, 505, 10)


def test_steps_are_independent_and_repeatable() -> None:
    draws = {(e, s): crop_generator(7, e, s, 0).random() for e in range(5) for s in range(5)}
    assert len(set(draws.values())) == 25
    assert draws[(3, 4)] == crop_generator(7, 3, 4, 0).random()
    assert draws[(3, 4)] != crop_generator(8, 3, 4, 0).random()


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([0.0, 0.125, 0.5, 1.0]))
def test_a_margin_mirrors_what_is_at_the_edge(width: int, height: int, margin: float) -> None:
    pixels = np.random.default_rng(width * 41 + height).integers(0, 256, (height, width, 3), np.uint8)
    canvas = np.asarray(reflect_pad(Image.fromarray(pixels), margin))
    x, y = round(width * margin), round(height * margin)
    assert canvas.shape == (height + 2 * y, width + 2 * x, 3)
    for i in range(canvas.shape[0]):
        for j in range(canvas.shape[1]):
            row, column = (
                k if 0 <= k < n else -k - 1 if k < 0 else 2 * n - k - 1 for k, n in ((i - y, height), (j - x, width))
            )
            assert (canvas[i, j] == pixels[row, column]).all()
