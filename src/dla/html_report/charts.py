"""Small drawings as SVG text. Colours are the page's variables, so that they suit light and dark; texts are escaped.

All are 400 units wide, about as wide as they are shown, so that letters have their own size on a phone too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from dla.metrics.calibration import Calibration
from dla.metrics.intervals import Interval

__all__ = ["Series", "intervals", "lines", "percent", "reliability_diagram", "round_numbers", "shortened"]


WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 26, 30
COLOURS = ("var(--one)", "var(--two)", "var(--three)")

Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line: a name and its points; where `ys` is None there is none."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]

    def points(self) -> list[tuple[float, float]]:
        """Those that can be drawn."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if y is not None and math.isfinite(y)]


def percent(value: float) -> str:
    """0.5 -> "50 %"."""
    return f"{100 * value:g} %"


def lines(series: Sequence[Series], x_name: str, form: Callable[[float], str] = "{:g}".format) -> str:
    """Up to three lines over the same x, with a dot at each one's end; "" where there is no point at all."""
    drawn = [(s.name, s.points(), colour) for s, colour in zip(series, COLOURS, strict=False)]
    every = [point for _, points, _ in drawn for point in points]
    if not every:
        return ""
    x, y = _x_scale([p[0] for p in every]), _y_scale([p[1] for p in every])
    body = _grid(y.ticks, y.at, form) + _x_axis(x.ticks, x.at, x_name, "{:g}".format)
    legend: float = LEFT
    for name, points, colour in drawn:
        if not points:
            continue
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in points)
        body += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'
        body += f'<circle cx="{x.at(points[-1][0]):.1f}" cy="{y.at(points[-1][1]):.1f}" r="3.5" fill="{colour}"/>'
        body += f'<text class="name" x="{legend:.0f}" y="14" style="fill:{colour}">{escape(name)}</text>'
        legend += 18 + 7 * len(name)
    return _svg(body, HEIGHT, f"{', '.join(s.name for s in series)} by {x_name}")


def reliability_diagram(calibration: Calibration) -> str:
    """How often the first class is right, by how probable it was called; beneath it how many photos are where."""
    plot, strip = 230, 44
    x = _ChartAxis((0.0, 0.25, 0.5, 0.75, 1.0), (0, 1), (LEFT, WIDTH - RIGHT))
    y = _ChartAxis((0.0, 0.25, 0.5, 0.75, 1.0), (0, 1), (TOP + plot, TOP))
    body = _grid(y.ticks, y.at, percent)
    most = max(b.count for b in calibration.bins)
    floor = TOP + plot + 10 + strip
    for b in calibration.bins:
        left, width = x.at(b.low) + 1, x.at(b.high) - x.at(b.low) - 2
        tall = strip * b.count / most
        body += _box(left, floor - tall, width, tall, "var(--faint)", 0.6)
        if b.accuracy is not None:
            body += _box(left, y.at(b.accuracy), width, y.at(0) - y.at(b.accuracy), "var(--one)", 0.75)
    body += (f'<line x1="{x.at(0)}" y1="{y.at(0)}" x2="{x.at(1)}" y2="{y.at(1)}" stroke="var(--two)" '
             'stroke-width="2" stroke-dasharray="6 5"/>')  # fmt: skip
    body += f'<text class="name" x="{LEFT}" y="14" style="fill:var(--one)">right</text>'
    body += f'<text class="name" x="{LEFT + 46}" y="14" style="fill:var(--two)">as promised</text>'
    body += f'<text x="{LEFT - 7}" y="{floor - 2}" text-anchor="end">photos</text>'
    body += _x_axis(x.ticks, x.at, "probability of the first class", percent, floor)
    return _svg(body, floor + 34, "share that is right by the probability of the first class")


def intervals(rows: Sequence[tuple[str, float, Interval]], zero: bool = False) -> str:
    """A row for each share: its name, a dot, and its interval as a line; `zero` draws where there is no difference."""
    ends = [e for _, _, i in rows for e in (i.low, i.high)] + ([0.0] if zero else [])
    ticks = round_numbers(min(ends), max(ends), 4)
    pad = (ticks[-1] - ticks[0]) * 0.03
    x = _ChartAxis(ticks, (ticks[0] - pad, ticks[-1] + pad), (8, WIDTH - 8))
    bottom = 8 + 48 * len(rows)
    body = "".join(f'<line x1="{x.at(t):.1f}" y1="4" x2="{x.at(t):.1f}" y2="{bottom}" stroke="var(--rule)"/>'
                   for t in ticks)  # fmt: skip
    if zero:
        body += (
            f'<line x1="{x.at(0):.1f}" y1="4" x2="{x.at(0):.1f}" y2="{bottom}" stroke="var(--two)" stroke-width="2"/>'
        )
    for i, (name, value, interval) in enumerate(rows):
        middle = 38 + 48 * i
        low, high = x.at(interval.low), x.at(interval.high)
        # a rim of paper keeps the lines out of the letters
        rim = "paint-order:stroke;stroke:var(--paper);stroke-width:5px"
        body += f'<text x="8" y="{middle - 14}" style="fill:var(--ink);{rim}">{escape(shortened(name, 56))}</text>'
        body += (f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="var(--one)" '
                 'stroke-width="4" stroke-linecap="round" opacity="0.55"/>')  # fmt: skip
        body += f'<circle cx="{x.at(value):.1f}" cy="{middle}" r="5.5" fill="var(--one)"/>'
    body += _labels(x.ticks, x.at, percent, bottom + 16)
    return _svg(body, bottom + 24, "figures with their intervals")


@dataclass(frozen=True, slots=True)
class _ChartAxis:
    ticks: Sequence[float]
    values: tuple[float, float]
    units: tuple[float, float]

    def at(self, value: float) -> float:
        (low, high), (start, end) = self.values, self.units
        return start + (end - start) * (value - low) / ((high - low) or 1)


def _x_scale(xs: Sequence[float]) -> _ChartAxis:
    low, high = min(xs), max(xs)
    whole = [t for t in round_numbers(low, high, 6) if low <= t <= high and t == int(t)] or [low]
    return _ChartAxis(whole, (low, high) if low < high else (low - 1, high + 1), (LEFT + 6, WIDTH - RIGHT - 6))


def _y_scale(ys: Sequence[float]) -> _ChartAxis:
    ticks = round_numbers(min(ys), max(ys), 5)
    return _ChartAxis(ticks, (ticks[0], ticks[-1]), (HEIGHT - BOTTOM, TOP))


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them."""
    width = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(width / most))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if width / (s * power) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _grid(ticks: Sequence[float], at: Scale, form: Callable[[float], str]) -> str:
    return "".join(
        f'<line x1="{LEFT}" y1="{at(t):.1f}" x2="{WIDTH - RIGHT}" y2="{at(t):.1f}" stroke="var(--rule)"/>'
        f'<text x="{LEFT - 7}" y="{at(t) + 4:.1f}" text-anchor="end">{form(t)}</text>'
        for t in ticks
    )


def _x_axis(
    ticks: Sequence[float], at: Scale, name: str, form: Callable[[float], str], bottom: float = HEIGHT - BOTTOM
) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        _labels(ticks, at, form, bottom + 15)
        + f'<text x="{middle}" y="{bottom + 29}" text-anchor="middle">{name}</text>'
    )


def _labels(ticks: Sequence[float], at: Scale, form: Callable[[float], str], y: float) -> str:
    def anchor(x: float) -> str:
        return "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"

    return "".join(f'<text x="{at(t):.1f}" y="{y}" text-anchor="{anchor(at(t))}">{form(t)}</text>' for t in ticks)


def _box(left: float, top: float, width: float, height: float, colour: str, opacity: float) -> str:
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{colour}" opacity="{opacity}"/>'


def shortened(text: str, most: int) -> str:
    """The end of a long text: that of a path tells most."""
    return text if len(text) <= most else f"...{text[3 - most :]}"


def _svg(body: str, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(label)}">{body}</svg>'
