"""Text in columns, for people."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

__all__ = ["text_table"]


GAP = "  "
NARROWEST = 20  # a last column that has less room is not wrapped


def text_table(rows: Sequence[Sequence[str]], align: str, width: int | None = None) -> list[str]:
    """The lines of a table. Columns are as wide as their widest cell, and nothing is cut.

    `align` has "<" or ">" for each column. With `width` the last column is wrapped where a line would be longer.
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
    """Columns of a terminal that a text takes: two for a wide letter such as 字, none for an accent that is apart."""
    return sum(_letter_width(letter) for letter in text)


def _letter_width(letter: str) -> int:
    if unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def _padded(cell: str, width: int, align: str) -> str:
    blank = " " * (width - cell_width(cell))
    return cell + blank if align == "<" else blank + cell
