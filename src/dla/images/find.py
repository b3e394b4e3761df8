"""From what a user typed (files, folders, patterns, `-`) to the photos it stands for."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
        for entry in (entries := _entries(folder)) or ():
            if not _holds(entry.is_dir):
                # reading a pipe would wait for ever; a link that leads nowhere is told by its name
                if entry.is_symlink() or _holds(entry.is_file):
                    yield from self._photos([entry.path])
            elif not entry.is_symlink() and not entry.name.startswith("."):
                yield from self._walk(entry.path)
        if entries is None:
            yield folder  # it becomes a record with its error

    def _expand(self, pattern: str) -> Iterator[str]:
        path = Path(pattern)
        fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        base = os.path.join(*path.parts[:fixed]) if fixed else ""
        yield from self._photos(sorted(set(_matches(base, path.parts[fixed:])), key=lambda match: Path(match).parts))

    def _photos(self, paths: Iterable[str]) -> Iterator[str]:
        for path in paths:
            name = os.path.basename(path)
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith(".") or suffix not in PHOTO_SUFFIXES:
                self.skipped += 1
                self.others.update(() if name.startswith(".") else (suffix,))
            else:
                yield path


def _holds(question: Callable[[], bool]) -> bool:
    """Ask an entry of a folder. A link to itself or into a forbidden folder is neither a file nor a folder."""
    try:
        return question()
    except OSError:
        return False


def _entries(folder: str) -> list[os.DirEntry[str]] | None:
    """What is in a folder, by name, or None where it cannot be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return None


def _matches(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The files below a folder that match a pattern's parts, and the folders that could not be listed.

    `**` stands for any folders, but those that links lead to. Hidden folders match nothing.
    """
    first, rest = parts[0], parts[1:]
    if not glob.has_magic(first):
        path = os.path.join(folder, first)
        if rest and os.path.isdir(path):
            yield from _matches(path, rest)
        elif not rest and os.path.lexists(path) and not os.path.isdir(path):
            yield path
        return
    if first == "**" and rest:
        yield from _matches(folder, rest)
    entries = _entries(folder)
    if entries is None and os.path.isdir(folder):
        yield folder
    for entry in entries or ():
        path = os.path.join(folder, entry.name)
        if not _holds(entry.is_dir):
            if not rest and first != "**" and fnmatch.fnmatchcase(entry.name, first):
                yield path
        elif not entry.name.startswith("."):
            if first == "**":
                yield from () if entry.is_symlink() else _matches(path, parts)
            elif rest and fnmatch.fnmatchcase(entry.name, first):
                yield from _matches(path, rest)
