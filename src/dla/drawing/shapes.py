"""Write shapes on a page as SVG or PNG. The output is deterministic.

Lengths are in pixels of the SVG at its own size; y grows downwards.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, starmap
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from PIL import Image, ImageColor, ImageDraw, ImageFont

from dla.errors import UsageError

# The system's own sans-serif font.
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
PNG_SCALE = 2
SMOOTH = 3  # supersampling of the PNG

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Style:
    """The style of a group of shapes; the fields are SVG attributes, and None is not written.

    A colour is "#rrggbb" or "var(--name, #rrggbb)", which uses the CSS variable of the surrounding HTML page if it has
    one. The stroke of a text is an outline behind its letters.
    """

    fill: str = "none"
    fill_opacity: float | None = None
    stroke: str | None = None
    stroke_width: float | None = None
    stroke_dasharray: str | None = None
    paint_order: Literal["stroke"] | None = None
    font_size: float | None = None
    font_weight: Literal["bold"] | None = None
    text_anchor: Literal["start", "middle", "end"] | None = None


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle with its top left corner at (x, y) and rounded corners of `radius`; `hint` is a tooltip."""

    style: str
    x: float
    y: float
    width: float
    height: float
    radius: float = 0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Circle:
    """A circle with its centre at (x, y); `hint` is a tooltip."""

    style: str
    x: float
    y: float
    radius: float
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through `points`, or a polygon if the style has a fill; `hint` is a tooltip."""

    style: str
    points: tuple[Point, ...]
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A line of text; `y` is its baseline."""

    style: str
    x: float
    y: float
    text: str


Shape = Rect | Circle | Line | Text


@dataclass(frozen=True, slots=True)
class Page:
    """Shapes and their styles, by name. Styles are drawn in order, the first one at the bottom."""

    name: str
    width: float
    height: float
    styles: Mapping[str, Style]
    shapes: Sequence[Shape]

    def layers(self) -> Iterable[tuple[Style, list[Shape]]]:
        """Yield each style that is used, with its shapes."""
        for name, style in self.styles.items():
            if shapes := [shape for shape in self.shapes if shape.style == name]:
                yield style, shapes


def text_width(text: str, style: Style) -> float:
    """Return an upper bound of the width of a text, in the widest of the common fonts."""
    assert style.font_size
    return (0.7 if style.font_weight else 0.58) * style.font_size * len(text)


def to_svg(page: Page) -> str:
    """Return the page as the text of an SVG file, with a viewBox so that it scales."""
    size = f'width="{_n(page.width)}" height="{_n(page.height)}"'
    return inline_svg(page, f'xmlns="http://www.w3.org/2000/svg" {size}') + "\n"


def inline_svg(page: Page, attributes: str = "") -> str:
    """Return the page as an SVG element for an HTML page; without `attributes` it fills the width of its container."""
    box = f'viewBox="0 0 {_n(page.width)} {_n(page.height)}"'
    about = f'role="img" aria-label={quoteattr(page.name)} font-family="{FONTS}" stroke-linejoin="round"'
    lines = [f"<svg {' '.join(filter(None, (attributes, box, about)))}>"]
    for style, shapes in page.layers():
        attributes_of_style = ((name.replace("_", "-"), getattr(style, name)) for name in Style.__slots__)
        lines.append(f"<g{''.join(starmap(_attribute, attributes_of_style))}>")
        lines += map(_element, shapes)
        lines.append("</g>")
    return "\n".join([*lines, "</svg>"])


def _attribute(name: str, value: str | float | None) -> str:
    return "" if value is None else f' {name}="{value if isinstance(value, str) else _n(value)}"'


def _n(value: float) -> str:
    return f"{round(value, 2):g}"


def _element(shape: Shape) -> str:
    match shape:
        case Rect():
            tag, numbers = "rect", {"x": shape.x, "y": shape.y, "width": shape.width, "height": shape.height,
                                    "rx": shape.radius or None}  # fmt: skip
        case Circle():
            tag, numbers = "circle", {"cx": shape.x, "cy": shape.y, "r": shape.radius}
        case Line():
            points = " ".join(f"{_n(x)},{_n(y)}" for x, y in shape.points)
            return _closed(f'polyline points="{points}"', shape.hint)
        case Text():
            return f'<text x="{_n(shape.x)}" y="{_n(shape.y)}">{escape(shape.text)}</text>'
    return _closed(tag + "".join(starmap(_attribute, numbers.items())), shape.hint)


def _closed(tag: str, hint: str) -> str:
    return f"<{tag}><title>{escape(hint)}</title></{tag.split()[0]}>" if hint else f"<{tag}/>"


def to_png(page: Page) -> bytes:
    """Return the page as a PNG at twice its size."""
    scale = PNG_SCALE * SMOOTH
    size = round(page.width * PNG_SCALE), round(page.height * PNG_SCALE)
    image = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), "white")
    draw = ImageDraw.Draw(image, "RGBA")
    for style, shapes in page.layers():
        for shape in shapes:
            _paint(draw, style, shape, scale)
    data = io.BytesIO()
    image.resize(size, Image.Resampling.BOX).save(data, "PNG", optimize=True)
    return data.getvalue()


def _paint(draw: ImageDraw.ImageDraw, style: Style, shape: Shape, scale: int) -> None:
    """Draw one shape. Pillow strokes inside the shape, SVG centred on its edge, so half a stroke is added around it."""
    fill, stroke = _colour(style.fill, style.fill_opacity), _colour(style.stroke)
    width = round((style.stroke_width or 1) * scale) if stroke else 0
    edge = width / 2
    match shape:
        case Rect():
            x, y = shape.x * scale, shape.y * scale
            box = (x - edge, y - edge, x + shape.width * scale + edge - 1, y + shape.height * scale + edge - 1)
            draw.rounded_rectangle(box, shape.radius * scale + edge, fill, stroke, width)
        case Circle():
            draw.circle((shape.x * scale, shape.y * scale), shape.radius * scale + edge, fill, stroke, width)
        case Line():
            points = [(x * scale, y * scale) for x, y in shape.points]
            if fill:
                draw.polygon(points, fill)
            if stroke:
                for piece in _dashes(points, style.stroke_dasharray, scale):
                    draw.line(piece, stroke, width, joint="curve")
        case Text():
            size = style.font_size or 12
            font = ImageFont.load_default(size * scale)
            bold = size * scale / 45 if style.font_weight else 0  # Pillow's own font has one weight only
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[style.text_anchor or "start"]
            at = (shape.x * scale, shape.y * scale)
            if stroke:
                draw.text(at, shape.text, stroke, font, anchor=anchor, stroke_width=bold + edge, stroke_fill=stroke)
            draw.text(at, shape.text, fill, font, anchor=anchor, stroke_width=bold, stroke_fill=fill)


def _dashes(points: list[Point], dasharray: str | None, scale: float) -> Iterator[list[Point]]:
    """Yield the pieces of a line to draw: all of it, or the dashes of `dasharray` ("length gap")."""
    if dasharray is None:
        yield points
        return
    dash, gap = (float(length) * scale for length in dasharray.split())
    for (x, y), (end_x, end_y) in pairwise(points):
        length = math.dist((x, y), (end_x, end_y))
        for number in range(math.ceil(length / (dash + gap))):
            start = number * (dash + gap)
            ends = (t / length for t in (start, min(start + dash, length)))
            yield [(x + t * (end_x - x), y + t * (end_y - y)) for t in ends]


def _colour(colour: str | None, opacity: float | None = None) -> tuple[int, ...] | None:
    if colour is None or colour == "none":
        return None
    plain = re.sub(r"var\(--\w+, (#\w+)\)", r"\1", colour)
    return (*ImageColor.getrgb(plain)[:3], round(255 * (1 if opacity is None else opacity)))


def writer_of(output: str | os.PathLike[str], flag: str = "--output") -> Callable[[Page], bytes]:
    """Return the function that converts a page to a file of this name; errors name `flag`.

    Raises:
        UsageError: the name ends in neither .svg nor .png.
    """
    ending = Path(output).suffix.lower()
    if ending == ".svg":
        return lambda page: to_svg(page).encode()
    if ending == ".png":
        return to_png
    raise UsageError(f"{flag} is {os.fspath(output)}. Allowed: a file that ends in .svg or .png")
