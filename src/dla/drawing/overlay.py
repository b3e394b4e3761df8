"""Draw the classes of a mask over the photo, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dla.errors import printable
from dla.types import Array

OPACITY = 0.5  # of the colours over the photo
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
