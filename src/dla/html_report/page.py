"""Write a report as one self-contained HTML file, without network and scripts, in the reader's light or dark theme.

A page has sections, and a section has parts: plain values that `page.html` renders. It escapes every text except the
`svg` of a chart, which `dla.drawing.shapes` has escaped.
"""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dla.drawing.shapes import Page, inline_svg
from dla.errors import import_optional, pip_line
from dla.storage.files import write_file
from dla.types import Array
from dla.version import __version__


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure in large type: its label, its value and a note."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures side by side."""

    items: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with a title above and a note below."""

    title: str
    drawing: Page
    note: str = ""

    @property
    def svg(self) -> str:
        """The drawing as an element of the page."""
        return inline_svg(self.drawing)


@dataclass(frozen=True, slots=True)
class Charts:
    """Charts side by side where there is room. They are collapsed under the text `folded`, if any."""

    items: tuple[Chart, ...]
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A table cell with a share from 0 to 1 and a bar of that length; None is a dash. One of `few` photos is faded."""

    value: float | None
    few: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first `texts` columns are text, the others numbers. `folded` is the text it is collapsed under."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str | Share, ...], ...]
    texts: int = 1
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A confusion matrix: rows are true classes, columns predicted classes, and a cell is (count, share of its row).

    Rows of `few` photos are faded.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[tuple[int, float], ...], ...]
    few: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class PageImage:
    """An image as a data: URI, with lines of text and the path of its file below.

    A `pixelated` one is enlarged without smoothing.
    """

    uri: str
    lines: tuple[str, ...] = ()
    alt: str = ""
    pixelated: bool = False
    path: str = ""


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """Images side by side as squares, or one as wide as the page (`wide`), or whole ones, two in a row (`strips`).

    `swatches` are small squares of one colour, such as in a legend.
    """

    items: tuple[PageImage, ...]
    wide: bool = False
    strips: bool = False
    swatches: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Pairs of a name and a value. They are collapsed under the text `folded`, if any."""

    items: tuple[tuple[str, str], ...]
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Preformatted text. It is collapsed under the text `folded`, if any."""

    text: str
    folded: str = ""


Part = Figures | Charts | Table | Matrix | ImageGrid | Facts | Code


@dataclass(frozen=True, slots=True)
class Section:
    """Parts under a title and a note of a sentence or two."""

    title: str
    parts: tuple[Part, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Sections side by side where there is room."""

    sections: tuple[Section, ...]


def check_can_write() -> None:
    """Check that pages can be written, before a long computation.

    Raises:
        UnavailableError: jinja2 is not installed.
    """
    _environment()


@dataclass(frozen=True, slots=True)
class Heading:
    """The top of a page: the kind of report, the name of what it is about, a line of facts, and the result in words."""

    title: str
    name: str = ""
    subtitle: str = ""
    sentence: str = ""


def write_page(path: str | os.PathLike[str], heading: Heading, sections: tuple[Section | SideBySide, ...]) -> None:
    """Write a page atomically.

    Raises:
        UnavailableError: jinja2 is not installed.
        OSError: `path` cannot be written.
    """
    rows = tuple(s.sections if isinstance(s, SideBySide) else (s,) for s in sections)
    values: Mapping[str, Any] = {"heading": heading, "rows": rows, "version": __version__}
    text = _environment().get_template("page.html").render(values)
    write_file(path, text.encode(errors="replace"))  # file names may contain bytes that are not UTF-8


@cache
def _environment() -> Any:
    jinja2 = import_optional("jinja2", f"a report needs jinja2: {pip_line('train')}")
    template = files("dla.html_report").joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page.html": template}), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_unbroken_units,
    )  # fmt: skip
    environment.filters["path_pieces"] = re.compile(r"[^/_.\s-]*[/_.\s-]*").findall
    return environment


def _unbroken_units(value: Any) -> Any:
    """Return a text with a non-breaking space between each number and its unit, so that no line breaks there."""
    return re.sub(rf"(?<=\d) (?=(?:{_UNITS})(?!\w))", "\u00a0", value) if type(value) is str else value


_UNITS = "%|s|min|px|MB|GB|nats|points|photos/s"
THUMBNAIL = 160
RIGHT, WRONG = (47, 129, 247), (235, 72, 66)  # seen on white and on black


def thumbnail(photo: Image.Image) -> str:
    """Return the central square of a photo as a data: URI, at most `THUMBNAIL` pixels wide."""
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.convert("RGB").crop((left, top, left + side, top + side))
    square.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return embedded(square)


def embedded(picture: Image.Image, most: int = 1000, **options: Any) -> str:
    """Return an image as a data: URI of a WebP at most `most` pixels wide; `options` are Pillow's."""
    if picture.width > most:
        picture = picture.resize((most, max(1, round(picture.height * most / picture.width))), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", **{"quality": 72, "method": 4, **options})
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def heat_map(shares_KK: Array) -> str:
    """Return shares (0 to 1) as a data: URI with one pixel per cell, the more opaque the larger; the diagonal is blue.

    A share of 0 is transparent, so that the image suits light and dark pages.
    """
    rgba = np.zeros((*shares_KK.shape, 4), np.uint8)
    rgba[..., :3] = WRONG
    diagonal = np.arange(min(shares_KK.shape))
    rgba[diagonal, diagonal, :3] = RIGHT
    # the square root makes the many small shares visible
    rgba[..., 3] = np.round(255 * np.sqrt(np.clip(shares_KK, 0, 1)))
    return embedded(Image.fromarray(rgba, "RGBA"), most=10_000, lossless=True)


MOST = 64
GAP = 6
LABEL_INK = "#7a828c"  # readable on white and on black, as the gaps are transparent


def mosaic_png(pixels_NHW3: np.ndarray[Any, np.dtype[np.uint8]], labels: Sequence[str]) -> bytes:
    """Return up to 64 images (N, H, W, 3) in one PNG, row by row, in a grid that is nearly square.

    The label of an image is written below it, shortened to its width.
    """
    n, (height, width) = min(len(pixels_NHW3), MOST), pixels_NHW3.shape[1:3]
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    size = max(10, width // 8)
    font, line = ImageFont.load_default(size), math.ceil(1.4 * size)
    across, down = width + GAP, height + line + GAP
    sheet = Image.new("RGBA", (columns * across - GAP, rows * down - GAP))
    draw = ImageDraw.Draw(sheet)
    for i, (pixels_HW3, label) in enumerate(zip(pixels_NHW3[:n], labels, strict=False)):
        left, top = i % columns * across, i // columns * down
        sheet.paste(Image.fromarray(pixels_HW3), (left, top))
        draw.text((left + width / 2, top + height + line / 2), _fitted(label, font, width), LABEL_INK, font, "mm")
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Return the text on one line, shortened from the right if it is wider than `width` pixels."""
    line = " ".join(text.split())
    shorter = (f"{line[:end].rstrip()}…" for end in range(len(line) - 1, 0, -1))
    return next((shown for shown in (line, *shorter) if font.getlength(shown) <= width), "")
