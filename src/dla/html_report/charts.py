"""Draw charts: lines, a reliability diagram, intervals. In an HTML page they use its colours.

All are 400 units wide, about as wide as in a report, so that the text keeps its size on a phone too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dla.drawing.shapes import Circle, Line, Page, Rect, Shape, Style, Text
from dla.metrics.calibration import Calibration
from dla.metrics.intervals import Interval

FEW_PHOTOS = 5  # a figure of fewer photos is faded
WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 34

# The CSS variables of page.html, with its light colours as fallback outside of a page.
COLOURS = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "faint": "#59636e",
    "rule": "#d5dbe1",
    "one": "#0969da",
    "two": "#bc4c00",
    "three": "#1a7f37",
}
_PAPER, _INK, _FAINT, _RULE, *_SERIES = (f"var(--{name}, {colour})" for name, colour in COLOURS.items())
_ONE, _TWO, _ = _SERIES
_LINES = dict(zip(("first", "second", "third"), _SERIES, strict=True))

STYLES = {  # in the order of drawing
    "grid": Style(stroke=_RULE, stroke_width=1),
    "reference": Style(stroke=_TWO, stroke_width=2),
    "count": Style(_FAINT, 0.6),
    "bar": Style(_ONE, 0.75),
    "faded bar": Style(_ONE, 0.25),
    "interval": Style(_ONE, 0.55),
    "target": Style(stroke=_TWO, stroke_width=2, stroke_dasharray="6 5"),
    "mark": Style(stroke=_FAINT, stroke_width=1.5, stroke_dasharray="3 4"),
    **{name: Style(stroke=colour, stroke_width=2) for name, colour in _LINES.items()},
    **{f"{name} dot": Style(colour) for name, colour in _LINES.items()},
    **{anchor: Style(_FAINT, font_size=12, text_anchor=anchor) for anchor in ("start", "middle", "end")},
    "row": Style(_INK, stroke=_PAPER, stroke_width=5, paint_order="stroke", font_size=12),  # lines end at its letters
    **{f"{name} name": Style(colour, font_size=12, font_weight="bold") for name, colour in _LINES.items()},
}

NumberFormat = Callable[[float], str]
_GENERAL: NumberFormat = "{:g}".format


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: its name and points; a `ys` of None is no point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]

    def points(self) -> list[tuple[float, float]]:
        """Return the points with a finite y."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if y is not None and math.isfinite(y)]


def percent(value: float) -> str:
    """Format a share as per cent: 0.5 is "50 %"."""
    return f"{100 * value:g} %"


def line_chart(
    series: Sequence[Series],
    x_name: str,
    y_format: NumberFormat = _GENERAL,
    *,
    log_x: bool = False,
    mark: tuple[str, float] | None = None,
) -> Page | None:
    """Draw up to three lines with a dot on each, at the mark or else at its end; return None if there are no points.

    Args:
        series: the lines.
        x_name: the label of the x axis.
        y_format: formats the values of the y axis.
        log_x: make the x axis logarithmic; every x must be above 0.
        mark: the name and the x of a dashed vertical line.
    """
    points = [point for s in series for point in s.points()]
    if not points:
        return None
    x = (_log_axis if log_x else _whole_axis)([p[0] for p in points])
    y = _y_axis([p[1] for p in points])
    shapes = [*_grid(y, y_format), *_x_labels(x, x_name, _GENERAL)]
    legend: float = LEFT
    for s, style in zip(series, _LINES, strict=False):
        if line := [(x.at(a), y.at(b)) for a, b in s.points()]:
            dot = next((at for at, (a, _) in zip(line, s.points(), strict=True) if mark and a == mark[1]), line[-1])
            shapes += [Line(style, tuple(line), s.name), Circle(f"{style} dot", *dot, 4)]
            shapes.append(Text(f"{style} name", legend, 14, s.name))
            legend += 18 + 7 * len(s.name)
    if mark is not None:
        name, at = mark
        shapes += [Line("mark", ((x.at(at), y.at(y.ticks[-1])), (x.at(at), y.at(y.ticks[0]))), name)]
        shapes.append(Text("start", legend, 14, name))
    return Page(f"{', '.join(s.name for s in series)} by {x_name}", WIDTH, HEIGHT, STYLES, shapes)


def reliability_diagram(calibration: Calibration) -> Page:
    """Draw the accuracy of each confidence bin against the diagonal, and below it the number of photos of each bin.

    Bars of fewer than `FEW_PHOTOS` photos are faded.
    """
    plot, strip = 230, 44
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    x = _ChartAxis(ticks, (0, 1), (LEFT, WIDTH - RIGHT))
    y = _ChartAxis(ticks, (0, 1), (TOP + plot, TOP))
    most = max(b.count for b in calibration.bins)
    floor = TOP + plot + 10 + strip
    shapes = [*_grid(y, percent), *_x_labels(x, "probability of the top-1 class", percent, floor)]
    for b in calibration.bins:
        left, width = x.at(b.low) + 1, x.at(b.high) - x.at(b.low) - 2
        tall = strip * b.count / most
        shapes.append(Rect("count", left, floor - tall, width, tall))
        if b.accuracy is not None:
            style = "bar" if b.count >= FEW_PHOTOS else "faded bar"
            shapes.append(Rect(style, left, y.at(b.accuracy), width, y.at(0) - y.at(b.accuracy)))
    shapes += [
        Line("target", ((x.at(0), y.at(0)), (x.at(1), y.at(1)))),
        Text("first name", LEFT, 14, "accuracy"),
        Text("second name", LEFT + 70, 14, "perfect calibration"),
        Text("end", LEFT - 7, floor - 2, "photos"),
    ]
    return Page("accuracy by the probability of the top-1 class", WIDTH, floor + 34, STYLES, shapes)


def interval_chart(rows: Sequence[tuple[str, float, Interval]], zero: bool = False) -> Page:
    """Draw one row per share: its name, a dot, and its interval as a bar; with `zero`, a line at no difference."""
    ends = [e for _, _, i in rows for e in (i.low, i.high)] + ([0.0] if zero else [])
    ticks = round_numbers(min(ends), max(ends), 4)
    pad = (ticks[-1] - ticks[0]) * 0.03
    x = _ChartAxis(ticks, (ticks[0] - pad, ticks[-1] + pad), (8, WIDTH - 8))
    bottom = 8 + 48 * len(rows)
    shapes: list[Shape] = [Line("grid", ((x.at(t), 4), (x.at(t), bottom))) for t in ticks]
    if zero:
        shapes.append(Line("reference", ((x.at(0), 4), (x.at(0), bottom))))
    for i, (name, value, interval) in enumerate(rows):
        middle = 38 + 48 * i
        low, high = x.at(interval.low), x.at(interval.high)
        shapes.append(Text("row", 8, middle - 14, shortened(name, 56)))
        shapes.append(Rect("interval", low - 2, middle - 2, high - low + 4, 4, 2))  # its ends are round
        shapes.append(Circle("first dot", x.at(value), middle, 5.5))
    shapes += _tick_labels(x, percent, bottom + 16)
    return Page("figures with their intervals", WIDTH, bottom + 24, STYLES, shapes)


ISO_F = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def precision_recall_chart(curves: Sequence[tuple[str, Sequence[tuple[float, float]], tuple[float, float]]]) -> Page:
    """Draw up to three curves of (recall, precision), each with its name and a dot; dashed lines join equal F."""
    plot = 320
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    x = _ChartAxis(ticks, (0, 1), (LEFT, WIDTH - 44))
    y = _ChartAxis(ticks, (0, 1), (TOP + plot, TOP))
    shapes: list[Shape] = []
    for tick in ticks:
        shapes += [Line("grid", ((x.at(0), y.at(tick)), (x.at(1), y.at(tick)))),
                   Line("grid", ((x.at(tick), y.at(0)), (x.at(tick), y.at(1)))),
                   Text("end", LEFT - 7, y.at(tick) + 4, percent(tick))]  # fmt: skip
    for f in ISO_F:
        recalls = [f / (2 - f) + (1 - f / (2 - f)) * n / 40 for n in range(41)]
        line = tuple((x.at(r), y.at(f * r / (2 * r - f))) for r in recalls)
        shapes += [Line("mark", line, f"F {f:g}"), Text("start", x.at(1) + 5, line[-1][1] + 4, f"F {f:g}")]
    legend: float = LEFT
    for (name, points, dot), style in zip(curves, _LINES, strict=False):
        line = tuple((x.at(recall), y.at(precision)) for recall, precision in points if recall or precision)
        shapes += [Line(style, line, name)] if len(line) > 1 else []
        shapes += [Circle(f"{style} dot", x.at(dot[0]), y.at(dot[1]), 4.5), Text(f"{style} name", legend, 14, name)]
        legend += 18 + 7 * len(name)
    floor = TOP + plot
    shapes += [*_tick_labels(x, percent, floor + 15), Text("middle", (x.at(0) + x.at(1)) / 2, floor + 29, "recall")]
    return Page("precision by recall", WIDTH, floor + 36, STYLES, shapes)


@dataclass(frozen=True, slots=True)
class _ChartAxis:
    """An axis: its ticks, the values at its ends, and the positions of these ends."""

    ticks: Sequence[float]
    values: tuple[float, float]
    units: tuple[float, float]
    log: bool = False

    def at(self, value: float) -> float:
        (low, high), (start, end) = self.values, self.units
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return start + (end - start) * (value - low) / ((high - low) or 1)


def _whole_axis(xs: Sequence[float]) -> _ChartAxis:
    low, high = min(xs), max(xs)
    whole = [t for t in round_numbers(low, high, 6) if low <= t <= high and t == int(t)] or [low]
    return _ChartAxis(whole, (low, high) if low < high else (low - 1, high + 1), (LEFT + 6, WIDTH - RIGHT - 6))


def _log_axis(xs: Sequence[float]) -> _ChartAxis:
    """Return an axis with ticks at powers of ten that encloses all of `xs`."""
    low, high = math.floor(math.log10(min(xs)) + 1e-9), math.ceil(math.log10(max(xs)) - 1e-9)
    ticks = [10.0**power for power in range(low, max(high, low + 1) + 1)]
    return _ChartAxis(ticks, (ticks[0], ticks[-1]), (LEFT + 6, WIDTH - RIGHT - 6), log=True)


def _y_axis(ys: Sequence[float]) -> _ChartAxis:
    ticks = round_numbers(min(ys), max(ys), 5)
    return _ChartAxis(ticks, (ticks[0], ticks[-1]), (HEIGHT - BOTTOM, TOP))


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """Return about `most` equidistant round numbers, the first at most `low`, the last at least `high`."""
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / most))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if width / (s * power) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _grid(y: _ChartAxis, y_format: NumberFormat) -> Iterator[Shape]:
    for tick in y.ticks:
        yield Line("grid", ((LEFT, y.at(tick)), (WIDTH - RIGHT, y.at(tick))))
        yield Text("end", LEFT - 7, y.at(tick) + 4, y_format(tick))


def _x_labels(x: _ChartAxis, name: str, x_format: NumberFormat, bottom: float = HEIGHT - BOTTOM) -> Iterator[Shape]:
    yield from _tick_labels(x, x_format, bottom + 15)
    yield Text("middle", (LEFT + WIDTH - RIGHT) / 2, bottom + 29, name)


def _tick_labels(x: _ChartAxis, x_format: NumberFormat, y: float) -> Iterator[Shape]:
    for tick in x.ticks:
        at = x.at(tick)
        yield Text("start" if at < 20 else "end" if at > WIDTH - 20 else "middle", at, y, x_format(tick))


def shortened(text: str, most: int) -> str:
    """Shorten a text to `most` characters from the left: the end of a path says most."""
    return text if len(text) <= most else f"...{text[3 - most :]}"
