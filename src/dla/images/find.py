"""Find the photos that inputs of a command (files, folders, patterns, `-`) stand for."""

from __future__ import annotations

import codecs
import fnmatch
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from dla.errors import UsageError
from dla.storage.files import is_leftover

CONTAINERS = (
    ".tar",
    ".zip",
    ".parquet",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".tzst",
)
_REMOTE = re.compile(r"(?:s3|gs)://|fsspec:")
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


@dataclass
class PhotoFinder:
    """Iterate over the paths of photos, in the order of `inputs`; the names of one folder are in memory at a time.

    A folder is walked in sorted order, without hidden files and symbolic links to folders. Files with other suffixes
    are skipped and counted in `skipped` and, unless hidden, by suffix in `others`. A file named explicitly is always
    returned. A pattern (`*`, `?`, `[...]`, `**`) is expanded unless a file has exactly that name. `-` reads paths from
    `lines`. `unmatched` holds the folders and patterns without photos.

    A `.tar` or `.zip` archive, named or matched by a pattern, stands for its photos, a `.parquet` file for its
    `column` (`dla.images.parquet_photos`), and a folder or pattern in a store (`s3://bucket/photos/`) for what is
    there. These photos are `dla.images.located.LocatedPhoto`s: names that know their place.
    """

    inputs: Iterable[str]
    lines: Iterable[str] = ()
    column: str | None = None
    skipped: int = 0
    unmatched: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[str]:
        for item in self.inputs:
            if item == "-":
                yield from filter(None, (line.rstrip("\r\n") for line in self.lines))
            elif _REMOTE.match(item):
                yield from self._or_unmatched(item, self._in_store(item))
            elif os.path.isdir(item):
                yield from self._or_unmatched(item, self._walk(item))
            elif glob.has_magic(item) and not os.path.lexists(item):
                yield from self._or_unmatched(item, self._expand(item))
            elif item.lower().endswith(CONTAINERS) and os.path.isfile(item):
                yield from self._or_unmatched(item, self._contained(item))
            else:
                yield item

    def _or_unmatched(self, item: str, paths: Iterator[str]) -> Iterator[str]:
        empty = True
        for path in paths:
            empty = False
            yield path
        if empty:
            self.unmatched.append(item)

    def _walk(self, folder: str) -> Iterator[str]:
        for entry in (entries := list_entries(folder)) or ():
            if not is_kind(entry.is_dir):
                # reading a pipe would block for ever; a broken link is returned, to be reported by its name
                if entry.is_symlink() or is_kind(entry.is_file):
                    yield from self._if_photo(entry.path)
            elif not entry.is_symlink() and not entry.name.startswith("."):
                yield from self._walk(entry.path)
        if entries is None:
            yield folder  # reading it reports the error

    def _expand(self, pattern: str) -> Iterator[str]:
        path = Path(pattern)
        fixed = next(i for i, part in enumerate(path.parts) if glob.has_magic(part))
        base = os.path.join(*path.parts[:fixed]) if fixed else ""
        for match in sorted(set(_matches(base, path.parts[fixed:])), key=lambda match: Path(match).parts):
            if match.lower().endswith(CONTAINERS) and pattern.lower().endswith(CONTAINERS):
                yield from self._contained(match)
            else:  # an unlistable folder is its own error
                yield from [match] if os.path.isdir(match) else self._if_photo(match)

    def _in_store(self, item: str) -> Iterator[str]:
        from dla.images.located import of_stored  # here and below, because most photos are files
        from dla.storage.stores import open_store

        store, name = open_store(item), item.rpartition("/")[2]
        if glob.has_magic(item):
            base = item[: next(i for i, c in enumerate(item) if c in "*?[")].rpartition("/")[0]
            for stored in store.walk(base):
                if fnmatch.fnmatchcase(stored.uri, item.replace("**/", "*")):
                    yield from self._stored(stored.uri, of_stored(stored), name)
        elif os.path.splitext(name)[1]:
            yield from self._contained(item) if item.lower().endswith(CONTAINERS) else [item]
        else:
            for stored in store.walk(item):
                yield from self._if_photo(of_stored(stored))

    def _stored(self, uri: str, photo: str, pattern: str) -> Iterator[str]:
        wanted = uri.lower().endswith(CONTAINERS) and pattern.lower().endswith(CONTAINERS)
        yield from self._contained(uri) if wanted else self._if_photo(photo)

    def _contained(self, file: str) -> Iterator[str]:
        """Yield the photos of an archive or a parquet file."""
        from dla.images.located import photos_in, photos_of

        if file.lower().endswith(".parquet"):
            yield from photos_of(file, self.column)
        else:
            yield from photos_in(file, lambda name: any(self._if_photo(name)))

    def _if_photo(self, path: str) -> Iterator[str]:
        name = os.path.basename(path)
        suffix = os.path.splitext(name)[1].lower()
        if is_leftover(name):
            return  # a file that is being written
        if name.startswith(".") or suffix not in PHOTO_SUFFIXES:
            self.skipped += 1
            self.others.update(() if name.startswith(".") else (suffix,))
        else:
            yield path


def is_kind(predicate: Callable[[], bool]) -> bool:
    """Call `predicate`; False for a link to itself or into a forbidden folder, where it raises an OSError."""
    try:
        return predicate()
    except OSError:
        return False


def list_entries(folder: str) -> list[os.DirEntry[str]] | None:
    """Return the entries of a folder sorted by name, or None if it cannot be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return None


def _matches(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """Yield the files below a folder that match the parts of a pattern, and the folders that cannot be listed.

    `**` matches any number of folders and follows no symbolic links. Nothing matches a hidden folder.
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
    entries = list_entries(folder)
    if entries is None and os.path.isdir(folder):
        yield folder
    for entry in entries or ():
        path = os.path.join(folder, entry.name)
        if not is_kind(entry.is_dir):
            if not rest and first != "**" and fnmatch.fnmatchcase(entry.name, first):
                yield path
        elif not entry.name.startswith("."):
            if first == "**":
                yield from () if entry.is_symlink() else _matches(path, parts)
            elif rest and fnmatch.fnmatchcase(entry.name, first):
                yield from _matches(path, rest)


def read_path_list(file: BinaryIO) -> Iterator[str]:
    """Yield the paths of a list, one per line or, as `find -print0` writes it, one per zero byte.

    Raises:
        UsageError: it is no such list, but a photo or text in UTF-16.
    """
    from dla.images.formats import HEADER_BYTES, format_of  # here, because the help of a command needs no Pillow

    first = file.readline()
    if format_of(first[:HEADER_BYTES]) is not None or first == b"\x89PNG\r\n":  # the first line of a PNG file
        raise UsageError("standard input is a photo, not a list of paths. Save it to a file and give its name")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or first[1:8:2] == bytes(4):
        raise UsageError("standard input is text in UTF-16. Give the list of paths in UTF-8, one per line")
    first = first.removeprefix(codecs.BOM_UTF8)
    by_zero = b"\0" in first
    for part in (first + file.read()).split(b"\0") if by_zero else itertools.chain([first], file):
        yield os.fsdecode(part)
