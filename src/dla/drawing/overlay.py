"""Draw the classes of a mask, or a heat map, over the photo, with a legend or caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dla.drawing.palette import heat_colors
from dla.errors import printable
from dla.types import Array

OPACITY = 0.5  # of the colours over the photo
HEAT_OPACITY = 0.55
MOST_HEAT_SIDE = 1280  # in pixels; a map of a few places shows no more in a larger picture
MOST_NAMED = 24  # classes in the legend
_INK, _FAINT, _PAPER, _FRAME = "#1b1f24", "#59636e", "#ffffff", "#c9d1d9"
_LEAST_WIDTH = 260  # of the legend, in pixels
_LONGEST_NAME = 28  # in the legend, in characters

LegendEntry = tuple[int, str, float]  # index, name and share of a class


def draw_overlay(
    photo: Image.Image, mask_HW: Array, palette: Sequence[Sequence[int]], legend: Sequence[LegendEntry]
) -> Image.Image:
    """Return the photo with the classes' colours over it, their borders in full colour, and a legend below.

    Args:
        photo: of the mask's size.
        mask_HW: class indices.
        palette: the colour of each class, [red, green, blue].
        legend: the classes to name, in order.
    """
    # proportional to the photo, so that it is readable when a large one is scaled to a screen
    unit = max(13, round((photo.width * photo.height) ** 0.5 / 42))
    table = _Legend([*legend[:MOST_NAMED]], len(legend) - MOST_NAMED, unit, max(photo.width, _LEAST_WIDTH))
    page = Image.new("RGB", (table.width, photo.height + table.height), _PAPER)
    page.paste(_coloured(photo, mask_HW, palette, max(1, unit // 12)), ((table.width - photo.width) // 2, 0))
    table.draw(page, photo.height, palette)
    return page


def _coloured(photo: Image.Image, mask_HW: Array, palette: Sequence[Sequence[int]], line: int) -> Image.Image:
    """Return the photo with the colours over it; `line` is the width of the borders in pixels."""
    colors_HW3 = np.array(palette, np.uint8)[mask_HW]
    blended = np.array(Image.blend(photo.convert("RGB"), Image.fromarray(colors_HW3), OPACITY))
    border_HW = np.zeros(mask_HW.shape, bool)
    for shift in range(1, line + 1):
        for ahead, behind in ((np.s_[shift:], np.s_[:-shift]), (np.s_[:, shift:], np.s_[:, :-shift])):
            differs = mask_HW[ahead] != mask_HW[behind]
            border_HW[ahead] |= differs
            border_HW[behind] |= differs
    blended[border_HW] = colors_HW3[border_HW]
    return Image.fromarray(blended)


def draw_heat_map(
    photo: Image.Image, map_hw: Array, box: tuple[float, float, float, float], caption: Sequence[str]
) -> Image.Image:
    """Return the photo, at most `MOST_HEAT_SIDE` pixels wide and high, with the positive part of a map over it.

    Args:
        photo: the photo, RGB.
        map_hw: values of a few places, spread over `box` by linear interpolation.
        box: the part of the photo that the map is of: left, top, right, bottom in pixels. The rest is shown in grey.
        caption: lines of text below, the first one in ink and the others faint.
    """
    scale = min(1, MOST_HEAT_SIDE / max(photo.size))
    size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    small = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top, right, bottom = (round(side * scale) for side in box)
    positive_hw = map_hw.clip(0).astype(np.float32)
    heat = Image.fromarray(positive_hw / max(float(positive_hw.max()), 1e-12))
    shown = heat.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR)
    strength_HW = np.array(shown.crop((-left, -top, size[0] - left, size[1] - top)))
    colored = np.array(Image.blend(small, Image.fromarray(heat_colors(strength_HW)), HEAT_OPACITY))
    seen_HW = np.zeros(strength_HW.shape, bool)
    seen_HW[max(0, top) : bottom, max(0, left) : right] = True
    colored[~seen_HW] = np.array(small.convert("L").convert("RGB"))[~seen_HW]
    return _captioned(Image.fromarray(colored), caption)


def _captioned(picture: Image.Image, caption: Sequence[str]) -> Image.Image:
    unit = max(13, round((picture.width * picture.height) ** 0.5 / 42))
    font, row = ImageFont.load_default(unit), round(1.6 * unit)
    lines = [printable(line) for line in caption]
    width = max(picture.width, *(round(font.getlength(line)) + 2 * unit for line in lines))
    page = Image.new("RGB", (width, picture.height + row * len(lines) + unit), _PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    pen = ImageDraw.Draw(page)
    for n, line in enumerate(lines):
        pen.text((unit, picture.height + unit // 2 + n * row + row // 2), line, _FAINT if n else _INK, font, "lm")
    return page


class _Legend:
    """Classes in columns: a swatch, the name, and the share in per cent."""

    def __init__(self, entries: list[LegendEntry], more: int, unit: int, width: int) -> None:
        self.entries = [(index, _short(printable(name)), share) for index, name, share in entries]
        self.more, self.unit = more, unit
        self.font = ImageFont.load_default(unit)
        self.row, self.margin, self.gap = round(1.75 * unit), unit, round(0.6 * unit)
        names = [self._length(name) for _, name, _ in self.entries]
        self.share = self._length("100.0 %")
        needed = unit + self.gap + max(names, default=0) + self.gap + self.share
        self.step = needed + 2 * self.margin
        self.width = max(width, self.step)
        self.columns = max(1, min(len(entries), self.width // self.step))
        self.rows = -(-len(entries) // self.columns)
        self.height = self.row * (self.rows + (more > 0)) + 2 * self.gap

    def _length(self, text: str) -> int:
        return round(self.font.getlength(text))

    def draw(self, page: Image.Image, top: int, palette: Sequence[Sequence[int]]) -> None:
        pen = ImageDraw.Draw(page)
        for n, (index, name, share) in enumerate(self.entries):
            column, row = divmod(n, self.rows)
            x, y = self.margin + column * self.step, top + self.gap + row * self.row + self.row // 2
            half = self.unit // 2
            swatch = (x, y - half, x + self.unit, y + half)
            pen.rounded_rectangle(swatch, self.unit // 5, tuple(palette[index]), _FRAME, max(1, self.unit // 16))
            pen.text((x + self.unit + self.gap, y), name, _INK, self.font, "lm")
            end = x + self.step - 2 * self.margin
            pen.text((end, y), f"{100 * share:.1f} %", _FAINT, self.font, "rm")
        if self.more > 0:
            y = top + self.gap + self.rows * self.row + self.row // 2
            pen.text((self.margin, y), f"and {self.more:,} more", _FAINT, self.font, "lm")


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
