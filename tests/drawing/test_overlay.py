"""Overlays: the photo in its classes' colours above a legend of a size that fits it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dla.drawing.overlay import HEAT_OPACITY, MOST_HEAT_SIDE, MOST_NAMED, OPACITY, draw_heat_map, draw_overlay
from dla.drawing.palette import class_palette, heat_colors

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


def test_a_heat_map_lies_on_its_box_and_the_rest_is_grey() -> None:
    photo = Image.new("RGB", (400, 240), (100, 60, 20))
    map_hw = np.array([[-5.0, 0.0], [0.0, 2.0]], np.float32)
    page = np.asarray(draw_heat_map(photo, map_hw, (80.0, 0.0, 320.0, 240.0), ("cat  70 %", "4 places")))
    most, none = (
        (1 - HEAT_OPACITY) * np.array([100, 60, 20]) + HEAT_OPACITY * heat_colors(np.array(v)) for v in (1, 0)
    )
    for place, wanted in (((210, 290), most), ((30, 110), none), ((10, 85), none)):
        assert np.abs(page[place] - wanted).max() <= 1
    for place in ((120, 78), (120, 321), (0, 0)):
        assert len(set(page[place])) == 1
    assert (page[240:] == page[-1, -1]).all(2).mean() > 0.8
    assert (page[240:] != page[-1, -1]).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (480, 360), (3000, 2000)])
@pytest.mark.parametrize("box", [(0.2, 0.2, 0.8, 0.8), (-1.0, 0.0, 2.0, 1.0)])
def test_every_size_has_a_heat_map(size: tuple[int, int], box: tuple[float, ...]) -> None:
    scaled = tuple(part * side for part, side in zip(box, 2 * size, strict=True))
    page = draw_heat_map(
        Image.new("RGB", size), -np.ones((3, 2), np.float32), scaled, ("nothing \x1b[2J speaks for it",)
    )
    assert page.width >= min(size[0], MOST_HEAT_SIDE)
    assert page.height > min(size[1], MOST_HEAT_SIDE * size[1] // max(size))


def test_the_colours_of_heat_grow_lighter_evenly() -> None:
    colors = heat_colors(np.linspace(0, 1, 101)).astype(float)
    lightness = colors @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness) > 0).all()
