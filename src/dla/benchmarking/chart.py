"""Draw the chart of a benchmark: accuracy over latency, with a line per network and a dot per engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dla.benchmarking.rows import BenchReport, BenchRow
from dla.drawing.shapes import Circle, Line, Page, Rect, Shape, Style, Text, text_width
from dla.engines.select import TITLES
from dla.html_report.charts import round_numbers, shortened

INK, FAINT = "#1b1f24", "#59636e"
COLOURS = {"any": "#59636e", "openvino": "#0969da", "onnx": "#0b8a6f", "torch": "#d9480f", "timm": "#8250df"}
CHART_TITLES = {**TITLES, "timm": "timm"}

STYLES = {  # in the order of drawing
    "page": Style("#ffffff", stroke="#d0d7de"),
    "strip": Style("#f3f6fa"),
    "grid": Style(stroke="#e6eaef"),
    "span": Style(stroke="#c3ccd6", stroke_width=2),
    **{f"{engine} fp32": Style(colour, stroke="#ffffff", stroke_width=1) for engine, colour in COLOURS.items()},
    **{f"{engine} int8": Style("#ffffff", stroke=colour, stroke_width=2) for engine, colour in COLOURS.items()},
    **{f"{engine} bf16": Style(colour, 0.35, stroke=colour, stroke_width=1.4) for engine, colour in COLOURS.items()},
    "tick": Style(FAINT, font_size=11.5, text_anchor="middle"),
    "level": Style(FAINT, font_size=11.5, text_anchor="end"),
    "start": Style(INK, font_size=12, text_anchor="start"),
    "end": Style(INK, font_size=12, text_anchor="end"),
    "middle": Style(INK, font_size=12, text_anchor="middle"),
    **{f"{engine} word": Style(colour, font_size=13, font_weight="bold") for engine, colour in COLOURS.items()},
    "word": Style(FAINT, font_size=13),
    "title": Style(INK, font_size=22, font_weight="bold"),
    "about": Style(FAINT, font_size=12.5),
}

WIDTH, MARGIN = 900, 22
LEFT, RIGHT, TOP = 70, 30, 126
TALL, EACH = (160, 460), 50  # the plot's smallest and largest height, and the height that each network adds
LANE = 26  # height of the lane of a network without an accuracy on the axis
DOT = 5.5

PlotBox = tuple[float, float, float, float]  # left, top, right, bottom


def bench_chart(report: BenchReport) -> Page:
    """Draw every network of the report at its smallest batch; those without a comparable accuracy are on a strip."""
    batch = min(row.batch for row in report.rows)
    rows = [row for row in report.rows if row.batch == batch]
    plot = _Plot(rows)
    shapes = [*_head(report, rows, batch), *_grid(plot), *_strip(plot), *(_dot(plot, row) for row in rows)]
    for model in plot.models:
        xs = [plot.x(row) for row in rows if row.model == model]
        shapes.append(Line("span", ((min(xs), plot.y(model)), (max(xs), plot.y(model)))))
    shapes += _labels(plot)
    page = Rect("page", 0.5, 0.5, WIDTH - 1, plot.height - 1, 8)
    return Page(f"accuracy over latency: {', '.join(plot.models)}", WIDTH, plot.height, STYLES, (page, *shapes))


class _Plot:
    """The layout and the scales: milliseconds to x, per cent to y."""

    def __init__(self, rows: Sequence[BenchRow]) -> None:
        self.rows = rows
        self.models = {row.model: row for row in rows}
        # accuracies on different photos are not comparable; published ones are preferred
        axis = next((on for on in ("ImageNet-1k", "own") if any(row.top1_dataset == on for row in rows)), None)
        known = {row.model: row.top1 for row in rows if row.top1 is not None and row.top1_dataset == axis}
        self.levels = round_numbers(min(known.values()), max(known.values()), 6) if known else []
        self.bottom = TOP + (min(TALL[0] + EACH * (len(known) - 1), TALL[1]) if known else 0)
        self.lanes = [model for model in self.models if model not in known]
        self.top1 = known
        self.floor = self.bottom + (LANE * len(self.lanes) + 38 if self.lanes else 12)
        self.height = self.floor + 52
        times = [1000 * row.p50_s for row in rows]
        self.low, self.high = math.log10(min(times)) - 0.12, math.log10(max(times)) + 0.06

    def at(self, milliseconds: float) -> float:
        share = (math.log10(milliseconds) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - RIGHT - LEFT)

    def x(self, row: BenchRow) -> float:
        return self.at(1000 * row.p50_s)

    def level(self, per_cent: float) -> float:
        low, high = self.levels[0], self.levels[-1]
        return self.bottom - (per_cent - low) / (high - low) * (self.bottom - TOP)

    def y(self, model: str) -> float:
        if model in self.top1:
            return self.level(self.top1[model])
        return self.bottom + 38 + LANE * (self.lanes.index(model) + 0.5)

    def ticks(self) -> Iterator[float]:
        """Yield 1, 2 and 5 times the powers of ten in range."""
        for power in range(math.floor(self.low), math.ceil(self.high) + 1):
            yield from (t for t in (f * 10.0**power for f in (1, 2, 5)) if self.low <= math.log10(t) <= self.high)


def _head(report: BenchReport, rows: Sequence[BenchRow], batch: int) -> Iterator[Shape]:
    yield Text("title", MARGIN, 40, "Accuracy over latency")
    what = "one photo" if batch == 1 else f"{batch} photos at once"
    threads = f", {report.threads} threads" if report.threads else ""
    yield Text("about", MARGIN, 62, f"{what}; {report.machine}{threads}. Up and to the left is better.")
    x = float(MARGIN)
    for engine in dict.fromkeys(row.engine for row in rows):
        yield Circle(f"{engine} fp32", x + DOT, 86, DOT)
        yield Text(f"{engine} word", x + 16, 90.5, CHART_TITLES[engine])
        x += 16 + text_width(CHART_TITLES[engine], STYLES[f"{engine} word"]) + 14
    precisions = list(dict.fromkeys(row.precision for row in rows))
    for precision in precisions if len(precisions) > 1 else ():
        yield Circle(f"any {precision}", x + 6 + DOT, 86, DOT)
        yield Text("word", x + 22, 90.5, precision)
        x += 22 + text_width(precision, STYLES["word"]) + 8


def _grid(plot: _Plot) -> Iterator[Shape]:
    for tick in plot.ticks():
        x = plot.at(tick)
        yield Line("grid", ((x, TOP), (x, plot.floor)))
        yield Text("tick", x, plot.floor + 18, f"{tick:g}")
    yield Text("tick", (LEFT + WIDTH - RIGHT) / 2, plot.floor + 38, "milliseconds, median")
    for level in plot.levels:
        y = plot.level(level)
        yield Line("grid", ((LEFT, y), (WIDTH - RIGHT, y)))
        yield Text("level", LEFT - 8, y + 4, f"{level:g} %")
    if plot.levels:
        yield Text("level", LEFT - 8, TOP - 12, "top-1")


def _strip(plot: _Plot) -> Iterator[Shape]:
    if plot.lanes:
        yield Rect("strip", LEFT, plot.bottom + 14, WIDTH - RIGHT - LEFT, plot.floor - plot.bottom - 14, 6)
        yield Text("about", LEFT + 10, plot.bottom + 31, "accuracy not known, or on other photos")


def _dot(plot: _Plot, row: BenchRow) -> Shape:
    hint = f"{row.model}, {row.case}: {1000 * row.p50_s:.1f} ms, {row.photos_per_s:.1f} photos/s"
    return Circle(row.case, plot.x(row), plot.y(row.model), DOT, hint)


def _labels(plot: _Plot) -> Iterator[Shape]:
    """Yield each network's name at a place where it covers neither a dot nor another name."""
    taken = [_around(plot.x(row), plot.y(row.model), DOT + 1) for row in plot.rows]
    for model, row in plot.models.items():
        text = shortened(model, 40) + (f", {row.top1:.1f} % of its own photos" if row.top1_dataset == "own" else "")
        places = list(_places(plot, model, text))
        label, box = next((place for place in places if not any(_meet(place[1], box) for box in taken)), places[0])
        taken.append(box)
        yield label


def _places(plot: _Plot, model: str, text: str) -> Iterator[tuple[Text, PlotBox]]:
    """Yield labels in the plot and their boxes: beside the fastest dot, beside the slowest, then above and below."""
    width = text_width(text, STYLES["middle"])
    xs = [plot.x(row) for row in plot.rows if row.model == model]
    y = plot.y(model)
    near = [("end", min(xs) - 10, y), ("start", max(xs) + 10, y)]
    for away in (16.0, 28.0, 40.0):
        middles = min(xs), max(xs), (min(xs) + max(xs)) / 2
        near += [("middle", x, y + side * away) for side in (-1, 1) for x in middles]
    for anchor, x, at in near:
        left = x - {"end": 1.0, "start": 0.0, "middle": 0.5}[anchor] * width
        if left >= LEFT and left + width <= WIDTH - RIGHT:
            yield Text(anchor, x, at + 4, text), (left, at - 6, left + width, at + 6)


def _around(x: float, y: float, radius: float) -> PlotBox:
    return x - radius, y - radius, x + radius, y + radius


def _meet(one: PlotBox, other: PlotBox) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
