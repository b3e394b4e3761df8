"""Tables of plain text."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

GAP = "  "
NARROWEST = 20  # the last column is wrapped to at least this many cells


def text_table(rows: Sequence[Sequence[str]], align: str, width: int | None = None) -> list[str]:
    """Return the lines of a table. Each column is as wide as its widest cell; no cell is truncated.

    `align` has "<" or ">" for each column. With `width`, in terminal columns, longer lines are wrapped in the last
    column.
    """
    widths = [max(map(cell_width, column)) for column in zip(*rows, strict=True)]
    start = sum(widths[:-1]) + len(GAP) * len(widths[:-1])
    room = None if width is None else max(width - start, NARROWEST)
    lines = []
    for row in rows:
        *cells, last = map(_padded, row, widths, align)
        first, *others = [last] if room is None else textwrap.wrap(last, room, break_on_hyphens=False) or [""]
        lines += [GAP.join([*cells, first]).rstrip(), *(" " * start + other for other in others)]
    return lines


def cell_width(text: str) -> int:
    """Return the terminal columns that a text takes: two for a wide letter such as 字, none for a combining accent."""
    return sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def _padded(cell: str, width: int, align: str) -> str:
    blank = " " * (width - cell_width(cell))
    return cell + blank if align == "<" else blank + cell
