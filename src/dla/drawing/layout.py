"""Lay out the diagram of a network: levels side by side, boxes for layers, circles for nodes, lines for their inputs.

A `Drawing` describes the network on a grid: a level has columns, the drawing has rows, and row 0 is the lowest.
`lay_out` turns it into shapes, which `dla.drawing.shapes` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from dla.drawing.shapes import Circle, Line, Page, Point, Rect, Shape, Style, Text, text_width

PartKind = Literal["conv", "block", "node", "pool", "map"]
WireKind = Literal["path", "takes", "pooled", "up"]


@dataclass(frozen=True, slots=True)
class NetworkPart:
    """One box, or one circle (a "node").

    name: its name in the network, unique in the drawing.
    column: its column in its level, from the left.
    row: its row in the drawing, from below.
    covers: number of columns of the tree that ends in this node; 0 if none does.
    text: a few letters, shown inside.
    hint: a sentence, shown as a tooltip.
    """

    name: str
    kind: PartKind
    column: int = 0
    row: int = 0
    covers: int = 0
    text: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """The parts of one resolution, with the `lines` of text below them, the first one bold.

    The height of the boxes shows the stride, unless it is None.
    """

    lines: tuple[str, ...]
    parts: tuple[NetworkPart, ...]
    stride: int | None = None

    @property
    def columns(self) -> int:
        """Return the number of columns."""
        return 1 + max(part.column for part in self.parts)

    @property
    def rows(self) -> int:
        """Return the number of rows, from row 0 to its highest part."""
        return 1 + max(part.row for part in self.parts)


@dataclass(frozen=True, slots=True)
class Wire:
    """A line from the part `source` to the part `target`: the path through the network, or an input of a node."""

    source: str
    target: str
    kind: WireKind


@dataclass(frozen=True, slots=True)
class Drawing:
    """The content of a diagram. `rows` are the labels of row 1 and the rows above it.

    A line of the `legend` explains kinds of parts and wires, and "tree", the background of a smaller tree.
    """

    title: str
    subtitle: str
    caption: str
    levels: tuple[Level, ...]
    wires: tuple[Wire, ...]
    rows: tuple[str, ...]
    legend: tuple[Mapping[str, str], ...]


INK, FAINT = "#1b1f24", "#59636e"
PATH, TAKES, POOLED = "#6e7781", "#d9480f", "#0b8a6f"

STYLES = {  # in the order of drawing
    "page": Style("#ffffff", stroke="#d0d7de"),
    "panel": Style("#f3f6fa"),
    "tree": Style("#0969da", 0.07),
    "guide": Style(stroke="#d5dbe2"),
    "path": Style(stroke=PATH, stroke_width=1.4),
    "arrow": Style(PATH),
    "pooled": Style(stroke=POOLED, stroke_width=1.6),
    "takes": Style(stroke=TAKES, stroke_width=1.6),
    "up": Style(stroke=POOLED, stroke_width=1.6),
    "conv": Style("#c6d3e1", stroke="#8295a9"),
    "block": Style("#4c8fdc", stroke="#2f6cb3"),
    "map": Style("#4c8fdc", stroke="#2f6cb3"),
    "pool": Style("#ffffff", stroke=POOLED, stroke_width=1.4),
    "node": Style("#ffffff", stroke=TAKES, stroke_width=1.8),
    "inside": Style(POOLED, font_size=9.5, text_anchor="middle"),
    "number": Style(TAKES, font_size=11, font_weight="bold", text_anchor="middle"),
    "row": Style(FAINT, font_size=11),
    "name": Style(INK, font_size=12, font_weight="bold", text_anchor="middle"),
    "fact": Style(FAINT, font_size=11, text_anchor="middle"),
    "legend": Style(INK, font_size=11.5),
    "title": Style(INK, font_size=24, font_weight="bold"),
    "subtitle": Style(FAINT, font_size=13),
    "caption": Style(INK, font_size=13),
}

MARGIN = 22
HEAD = 108  # height of the titles above the levels
AIM = 940  # target width of the drawing
PITCH = (23, 40)  # smallest and largest distance between columns
GAP = 22  # between levels, where the path runs from one to the next
NARROW = 72  # smallest width of a level, for the text below it
ROW = 44  # distance between rows
PILL = 15, 8  # half the width and height of a pool
CORNER = 5  # radius of the path's corners
LABEL = 16  # height of a line of text below a level
LINE = 22  # height of a line of the legend


def lay_out(drawing: Drawing) -> Page:
    """Return a page with the drawing as shapes."""
    grid = _Grid(drawing)
    shapes = [*_panels(grid), *_guides(grid)]
    for wire in drawing.wires:
        shapes += _wire(grid, wire)
    for place in grid.places.values():
        shapes += _part(place)
    shapes += [*_words(drawing), *_legend(grid)]
    texts = [shape for shape in shapes if isinstance(shape, Text) and STYLES[shape.style].text_anchor is None]
    width = math.ceil(max(grid.right, *(text.x + text_width(text.text, STYLES[text.style]) for text in texts)) + MARGIN)
    height = math.ceil(grid.legend + LINE * len(drawing.legend) - 4)
    page = Rect("page", 0.5, 0.5, width - 1, height - 1, 8)
    return Page(f"{drawing.title}: {drawing.subtitle}", width, height, STYLES, (page, *shapes))


@dataclass(frozen=True, slots=True)
class _GridCell:
    """The position of a part: its centre, half its size, and `entry`, the x at which the path turns towards it."""

    part: NetworkPart
    x: float
    y: float
    half_width: float
    half_height: float
    entry: float


class _Grid:
    """The positions of levels, columns and rows, in pixels."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        wide = [level.columns for level in drawing.levels if level.columns > 1]
        fixed = 2 * MARGIN + GAP * (len(drawing.levels) - 1) + NARROW * (len(drawing.levels) - len(wide))
        self.pitch = min(max((AIM - fixed) / max(sum(wide), 1), PITCH[0]), PITCH[1])
        self.box = 0.54 * self.pitch
        self.radius = min(0.36 * self.pitch, 10.5)
        self.lefts, self.widths = [], []
        x = MARGIN + self._row_margin()
        for level in drawing.levels:
            self.lefts.append(x)
            self.widths.append(self._width(level))
            x += self.widths[-1] + GAP
        self.right = x - GAP
        highest = max(level.rows for level in drawing.levels) - 1
        tallest = max(self._half(level.stride) for level in drawing.levels)
        self.base = HEAD + 8 + max(self._rise(highest) + self.radius, tallest)
        self.bottom = self.base + tallest + 10
        self.legend = self.bottom + 30 + LABEL * max(len(level.lines) for level in drawing.levels)
        self.places = {place.part.name: place for place in self._places()}

    def _width(self, level: Level) -> float:
        return max(level.columns * self.pitch, NARROW)

    def _row_margin(self) -> float:
        """Return the width that the row labels need in addition to the space above the low levels on the left."""
        free, needed = 0.0, 0.0
        for level in self.drawing.levels:
            below = len(self.drawing.rows) if level.rows > 1 else 0
            needed = max([needed, *(text_width(text, STYLES["row"]) + 12 - free for text in self.drawing.rows[:below])])
            free += self._width(level) + GAP
        return needed

    def _half(self, stride: int | None) -> float:
        """Return half the height of a box: the smaller the stride, the taller."""
        return 12 if stride is None else max(29 - 4 * math.log2(stride), 7)

    def _rise(self, row: int) -> float:
        """Return the height of a row above the lowest one."""
        if row == 0:
            return 0
        low = max(self._half(level.stride) for level in self.drawing.levels if level.rows > 1)
        return low + 28 + (row - 1) * ROW

    def y(self, row: int) -> float:
        return self.base - self._rise(row)

    def top(self, level: Level) -> float:
        return self.y(level.rows - 1) - (self.radius if level.rows > 1 else self._half(level.stride)) - 8

    def _places(self) -> Iterator[_GridCell]:
        for level, left, width in zip(self.drawing.levels, self.lefts, self.widths, strict=True):
            pitch = width / level.columns
            for part in level.parts:
                x = left + (part.column + 0.5) * pitch
                entry = left - GAP / 2 if part.column == 0 else x - pitch / 2
                half = self.box / 2, self._half(level.stride)
                if part.kind == "node":
                    half = self.radius, self.radius
                elif part.kind == "pool":
                    x, half = left + 4 + PILL[0], PILL
                yield _GridCell(part, x, self.y(part.row), *half, entry)


def _panels(grid: _Grid) -> Iterator[Shape]:
    """Yield the background of each level, the text below it, and the backgrounds of its trees."""
    for level, left, width in zip(grid.drawing.levels, grid.lefts, grid.widths, strict=True):
        top = grid.top(level)
        yield Rect("panel", left, top, width, grid.bottom - top, 8)
        for number, line in enumerate(level.lines):
            yield Text("fact" if number else "name", left + width / 2, grid.bottom + 2 + LABEL * (number + 1), line)
        for part in sorted(level.parts, key=lambda part: -part.covers):
            if 0 < part.covers < level.columns:
                end = grid.places[part.name]
                inset = grid.box / 2 + 3.5
                x = end.x - (part.covers - 1) * width / level.columns - inset
                y = end.y - grid.radius - 4
                yield Rect("tree", x, y, end.x + inset - x, grid.bottom - 5 - y, 6)


def _guides(grid: _Grid) -> Iterator[Shape]:
    """Yield the label of each row, and a faint line from it to the row's last node."""
    start = MARGIN + max((text_width(text, STYLES["row"]) for text in grid.drawing.rows), default=0) + 8
    for row, text in enumerate(grid.drawing.rows, 1):
        y = grid.y(row)
        end = max(place.x for place in grid.places.values() if place.part.row == row)
        yield Text("row", MARGIN, y + 4, text)
        yield Line("guide", ((start, y), (end, y)))


def _wire(grid: _Grid, wire: Wire) -> Iterator[Shape]:
    source, target = grid.places[wire.source], grid.places[wire.target]
    hint = f"{wire.source} to {wire.target}"
    if wire.kind != "path":
        beneath = source.part.kind != "node" and source.part.row < target.part.row
        start = source.x, source.y - (source.half_height if beneath else 0)
        yield Line(wire.kind, (start, (target.x, target.y)), hint)  # circles and boxes cover its ends
        return
    end = target.x - target.half_width
    corners = [(source.x + source.half_width, source.y)]
    if source.y != target.y:
        corners += [(target.entry, source.y), (target.entry, target.y)]
    yield Line("path", tuple(_rounded([*corners, (end - 3, target.y)])), hint)
    yield Line("arrow", ((end - 5, target.y - 3), (end - 0.5, target.y), (end - 5, target.y + 3)))


def _rounded(corners: list[Point]) -> Iterator[Point]:
    """Round the corners of a line of horizontal and vertical pieces."""
    yield corners[0]
    for before, at, after in zip(corners, corners[1:], corners[2:], strict=False):
        r = min(CORNER, math.dist(before, at) / 2, math.dist(at, after) / 2)
        start, end = _toward(at, before, r), _toward(at, after, r)
        for t in (0.0, 0.25, 0.5, 0.75, 1.0):
            a, b, c = (1 - t) ** 2, 2 * t * (1 - t), t**2
            yield a * start[0] + b * at[0] + c * end[0], a * start[1] + b * at[1] + c * end[1]
    yield corners[-1]


def _toward(at: Point, other: Point, length: float) -> Point:
    share = length / (math.dist(at, other) or 1)
    return at[0] + share * (other[0] - at[0]), at[1] + share * (other[1] - at[1])


def _part(place: _GridCell) -> Iterator[Shape]:
    part = place.part
    if part.kind == "node":
        yield Circle("node", place.x, place.y, place.half_width, part.hint)
    else:
        x, y = place.x - place.half_width, place.y - place.half_height
        yield Rect(part.kind, x, y, 2 * place.half_width, 2 * place.half_height, 3, part.hint)
    if part.text:
        yield Text("number" if part.kind == "node" else "inside", place.x, place.y + 3.8, part.text)


def _words(drawing: Drawing) -> Iterator[Shape]:
    yield Text("title", MARGIN, 42, drawing.title)
    yield Text("subtitle", MARGIN, 66, drawing.subtitle)
    yield Text("caption", MARGIN, 87, drawing.caption)


def _legend(grid: _Grid) -> Iterator[Shape]:
    """Yield the samples of the legend with their text."""
    for number, line in enumerate(grid.drawing.legend):
        x, y = float(MARGIN), grid.legend + LINE * number
        for kind, text in line.items():
            yield _sample(kind, x, y - 4)
            yield Text("legend", x + 28, y, text)
            x += 28 + text_width(text, STYLES["legend"]) + 18


def _sample(kind: str, x: float, y: float) -> Shape:
    if kind == "node":
        return Circle(kind, x + 10, y, 7)
    if kind in ("path", "takes", "pooled", "up"):
        return Line(kind, ((x, y), (x + 20, y)))
    return Rect(kind, x + (0 if kind in ("tree", "pool") else 4), y - 7, 20 if kind in ("tree", "pool") else 12, 14, 3)
