"""From what a user typed (files, folders, patterns, `-`) to the photos it stands for."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PHOTO_SUFFIXES", "PhotoFinder"]


PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


@dataclass
class PhotoFinder:
    """Iterating gives each photo's path, in the order of `inputs`; one folder's names are in memory at a time.

    A folder is walked through in sorted order, without hidden files and links to folders; other kinds of files
    in it are passed over and counted in `skipped`, and in `others` by their ending unless they are hidden. A file
    named outright is always given, a pattern (`*`, `?`, `[...]`, `**`) is expanded unless a file has that very name.
    `-` reads paths from `lines`. `unmatched` holds the folders and patterns that gave nothing.
    """

    inputs: Iterable[str]
    lines: Iterable[str] = ()
    skipped: int = 0
    unmatched: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[str]:
        for item in self.inputs:
            if item == "-":
                yield from filter(None, (line.rstrip("\r\n") for line in self.lines))
            elif os.path.isdir(item):
                yield from self._or_unmatched(item, self._walk(item))
            elif glob.has_magic(item) and not os.path.lexists(item):
                yield from self._or_unmatched(item, self._expand(item))
            else:
                yield item

    def _or_unmatched(self, item: str, found: Iterator[str]) -> Iterator[str]:
        empty = True
        for path in found:
            empty = False
            yield path
        if empty:
            self.unmatched.append(item)

    def _walk(self, folder: str) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield folder  # a folder that cannot be listed becomes a record with its error
            return
        for entry in entries:
            if not entry.is_dir():
                # reading a pipe would wait for ever; a broken link is told by its name
                if entry.is_file() or entry.is_symlink():
                    yield from self._photos([entry.path])
            elif not entry.is_symlink() and not entry.name.startswith("."):
                yield from self._walk(entry.path)

    def _expand(self, pattern: str) -> Iterator[str]:
        parts = Path(pattern).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        # pathlib's ** does not go round in circles through links, glob's does
        for match in sorted(Path(*parts[:fixed]).glob(os.path.join(*parts[fixed:]))):
            if not match.is_dir() and not any(part.startswith(".") for part in match.parts[fixed:-1]):
                yield from self._photos([str(match)])

    def _photos(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            name = os.path.basename(path)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix not in PHOTO_SUFFIXES:
                self.skipped += 1
                self.others.update(() if name.startswith(".") else (suffix,))
            else:
                yield path
