"""One HTML file that needs nothing else: no network, no script. Light or dark as the reader's screen is.

A page is sections, a section is parts: plain values, which `page.html` lays out. Every text is escaped there; only the
`svg` of a chart is taken as it is (`dla.report.charts` escapes what it writes).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from dla.errors import UnavailableError
from dla.report.write import write_file
from dla.version import __version__

__all__ = [
    "Chart",
    "Charts",
    "Code",
    "Facts",
    "Figure",
    "Figures",
    "Matrix",
    "Picture",
    "Pictures",
    "Section",
    "Share",
    "Table",
    "check_can_write",
    "write_page",
]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure in large letters: what it is, its value, what to know about it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures side by side."""

    kind: ClassVar[str] = "figures"
    items: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing with a title above and a note below."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Charts:
    """Charts side by side where there is room."""

    kind: ClassVar[str] = "charts"
    items: tuple[Chart, ...]


@dataclass(frozen=True, slots=True)
class Share:
    """A cell with a share from 0 to 1 and a bar as long as that; None is a dash."""

    value: float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows beneath their heads; the first `texts` columns are text, the others numbers. `folded` hides it behind
    those words."""

    kind: ClassVar[str] = "table"
    heads: tuple[str, ...]
    rows: tuple[tuple[str | Share, ...], ...]
    texts: int = 1
    folded: str = ""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Counts of few classes: a row is the true class, a column what it was called, a cell (count, share of row)."""

    kind: ClassVar[str] = "matrix"
    names: tuple[str, ...]
    rows: tuple[tuple[tuple[int, float], ...], ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a data: URI, and lines of text beneath. A `pixelated` one shows its pixels as squares."""

    uri: str
    lines: tuple[str, ...] = ()
    alt: str = ""
    pixelated: bool = False


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures side by side, or one as wide as the page (`wide`)."""

    kind: ClassVar[str] = "pictures"
    items: tuple[Picture, ...]
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known, by name."""

    kind: ClassVar[str] = "facts"
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text as it was written. `folded` hides it behind those words."""

    kind: ClassVar[str] = "code"
    text: str
    folded: str = ""


Part = Figures | Charts | Table | Matrix | Pictures | Facts | Code


@dataclass(frozen=True, slots=True)
class Section:
    """Parts beneath a title and a sentence or two."""

    title: str
    parts: tuple[Part, ...]
    note: str = ""


def check_can_write() -> None:
    """See that pages can be written, before anything long.

    Raises:
        UnavailableError: jinja2 is missing.
    """
    _environment()


def write_page(path: str | os.PathLike[str], title: str, subtitle: str, sections: tuple[Section, ...]) -> None:
    """Write a page whole, or leave what is there.

    Raises:
        UnavailableError: jinja2 is missing.
        OSError: of the disk, naming `path`.
    """
    values: Mapping[str, Any] = {"title": title, "subtitle": subtitle, "sections": sections, "version": __version__}
    text = _environment().get_template("page.html").render(values)
    write_file(path, text.encode(errors="replace"))  # a name from the disk may hold bytes that are no text


@cache
def _environment() -> Any:
    try:
        from jinja2 import DictLoader, Environment, StrictUndefined
    except ImportError:
        raise UnavailableError("a report needs jinja2: pip install 'dla[train]'") from None
    template = files("dla.report").joinpath("page.html").read_text(encoding="utf-8")
    return Environment(loader=DictLoader({"page.html": template}), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)  # fmt: skip
