"""Overlays: the photo in its classes' colours above a legend of a size that fits it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dla.drawing.overlay import MOST_NAMED, OPACITY, draw_overlay
from dla.drawing.palette import class_palette

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def test_colours_lie_over_the_photo_and_borders_are_in_full_colour() -> None:
    photo = Image.new("RGB", (300, 80), (100, 100, 100))
    mask = np.zeros((80, 300), np.uint8)
    mask[20:60, 100:200] = 2
    page = np.asarray(draw_overlay(photo, mask, PALETTE, [(0, "road", 0.8), (2, "sky", 0.2)]))
    for place, k in (((5, 5), 0), ((40, 150), 2), ((79, 299), 0)):
        wanted = (1 - OPACITY) * 100 + OPACITY * np.array(PALETTE[k])
        assert np.abs(page[place] - wanted).max() <= 1
    assert (page[20, 150] == PALETTE[2]).all()
    assert (page[19, 150] == PALETTE[0]).all()
    assert (page[40, 100] == PALETTE[2]).all()
    legend = page[80:]
    assert (legend == PALETTE[0]).all(2).sum() > 50
    assert (legend == PALETTE[2]).all(2).sum() > 50
    assert not (legend == PALETTE[1]).all(2).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (480, 360), (1600, 1200)])
def test_every_size_has_a_legend(size: tuple[int, int]) -> None:
    mask = np.zeros(size[::-1], np.uint8)
    page = draw_overlay(Image.new("RGB", size), mask, PALETTE, [(0, "road", 1.0)])
    assert page.width >= max(size[0], 200)
    assert size[1] + 20 <= page.height < size[1] + 45 + 0.2 * max(size)


def test_long_and_many_names() -> None:
    names = [(k, f"class {k} " * 20 + "\x1b[2J", 1 / 100) for k in range(100)]
    page = draw_overlay(Image.new("RGB", (480, 360)), np.zeros((360, 480), np.uint8), class_palette(100), names)
    assert page.width <= 480
    assert page.height < 360 + 25 * (MOST_NAMED + 3)
