"""Write files and folders whole, and read JSON.

A file is written aside, under a name of its own (`.part-1f2e3d4c-NAME`) in the same folder, flushed to the disk and
renamed; then the rename is flushed too. So readers see the old content or the new, two writers do not meet, a full disk
changes nothing, and a process that is killed leaves at most a file that `is_leftover` knows.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dla.errors import DamagedError, UnavailableError

__all__ = [
    "JsonObject",
    "Kind",
    "errors_name",
    "fsync_dir",
    "is_leftover",
    "json_kind",
    "json_shown",
    "open_aside",
    "open_folder_aside",
    "parse_json",
    "parse_object",
    "read_bytes",
    "read_json",
    "remove_folder",
    "remove_leftovers",
    "write_file",
    "write_files",
]


_ASIDE = ".part-"
_LONGEST_NAME = 255  # bytes, on every usual file system
_NO_FSYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def write_files(files: Mapping[Path, bytes], *, fsync: bool = True) -> None:
    """Write files of one folder, in this order: each one whole, and none where not all can be written.

    Args:
        fsync: flush them to the disk. Without it a power cut may leave a file torn: only for files that carry a
            checksum and can be made again, where waiting for the disk would cost more than making them.

    Raises:
        OSError: of the disk; nothing has changed.
    """
    asides = {path: _aside(path) for path in files}
    try:
        for path, data in files.items():
            with asides[path].open("xb") as file:
                file.write(data)
                if fsync:
                    _flush(file)
        for path, aside in asides.items():
            aside.replace(path)
    except BaseException:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        raise
    if fsync:
        fsync_dir(next(iter(files)).parent)


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write it whole, or leave what was there; into a pipe or a device directly.

    Raises:
        OSError: of the disk, with the path in the user's words.
    """
    place = Path(path).resolve()
    with errors_name(path):
        if place.exists() and not place.is_file():
            place.write_bytes(data)
        else:
            write_files({place: data})


@contextmanager
def open_aside(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to write into that takes the place of `path`, whole, when the `with` block ends without an error.

    Raises:
        OSError: of the disk, with this path; what was there is unchanged.
    """
    place = Path(path)
    aside = _aside(place)
    with errors_name(path):
        try:
            with aside.open("xb") as file:
                yield file
                _flush(file)
            aside.replace(place)
        finally:
            aside.unlink(missing_ok=True)
        fsync_dir(place.parent)


@contextmanager
def open_folder_aside(folder: Path, last: str = "") -> Iterator[Path]:
    """Make a folder to write files into; it takes the place of `folder` when the `with` block ends without an error.

    `folder` is not there, or empty. One that is there stays, as it may be a link, a place where a disk is mounted, or
    where the user stands: the files move into it, the one called `last` at the end.

    Raises:
        OSError: of the disk; there is no `folder` then that was not there before.
    """
    aside = _aside(folder)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in aside.iterdir():
            with path.open("rb+") as file:
                _flush(file)
        fsync_dir(aside)
        if folder.exists():
            for path in sorted(aside.iterdir(), key=lambda path: path.name == last):
                shutil.move(path, folder / path.name)
            fsync_dir(folder)
        else:
            aside.rename(folder)
            fsync_dir(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one being written, or was when its process was killed."""
    return name.startswith(_ASIDE)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; one that is half removed has no longer its name."""
    shutil.rmtree(folder.rename(_aside(folder)))


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder that nobody else writes into now."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if is_leftover(path.name):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def fsync_dir(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that what was renamed in it stays so when the power goes."""
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC_OF_FOLDERS:  # some network file systems
            raise
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Have errors of the disk name `path` where they name no file, as when it is full, or one that is written aside."""
    try:
        yield
    except OSError as error:
        if error.filename is None or is_leftover(os.path.basename(os.fsdecode(error.filename))):
            error.filename = os.fspath(path)
        raise


def _aside(path: Path) -> Path:
    """A path beside this one that nobody has."""
    begin = f"{_ASIDE}{os.urandom(4).hex()}-"
    return path.with_name(begin + os.fsdecode(os.fsencode(path.name)[: _LONGEST_NAME - len(begin)]))


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


MOST_JSON_BYTES = 2**28  # a config of a million classes has half of it


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read the object that a JSON file holds.

    Raises:
        UnavailableError: there is no such file, or it cannot be read.
        DamagedError: it is no JSON object, or larger than `most_bytes`.
    """
    return parse_object(read_bytes(path, most_bytes), str(path))


def read_bytes(path: Path, most_bytes: int = MOST_JSON_BYTES) -> bytes:
    """Read a file that is not expected to be large; raises as `read_json`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read() if size <= most_bytes else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnavailableError(f"{path} does not exist.") from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}.") from error
    if size > most_bytes:
        raise DamagedError(f"{path} has {size:,} bytes. Allowed: up to {most_bytes:,}.")
    return data


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The object in the bytes of a JSON file; `where` names the file in messages.

    Raises:
        DamagedError: it is no JSON object.
    """
    found = parse_json(data, where)
    if not isinstance(found, dict):
        raise DamagedError(f"{where} is no JSON object.")
    return found


def parse_json(data: bytes, where: str) -> Any:
    """What the bytes of a JSON file say.

    Of a key that stands twice the last value holds, and NaN and Infinity are numbers, as Python's own reader has it.

    Raises:
        DamagedError: it is no JSON.
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not readable as JSON: {error}.") from error


Kind = type | tuple[type, ...]
_REQUIRED = object()
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object of a JSON file, whose fields are checked as they are taken.

    `where` names the file in messages, `inside` the object in it: "" or such as "model_args.".
    """

    fields: Mapping[str, Any]
    where: str
    inside: str = ""

    def get(
        self,
        name: str,
        kind: Kind,
        allowed: str,
        holds: Callable[[Any], bool] = lambda value: True,
        default: Any = _REQUIRED,
    ) -> Any:
        """The value of a field, of this kind and for which `holds`; else `default`, where there is one and no value.

        Raises:
            DamagedError: another value: "NAME is VALUE. Allowed: ALLOWED."
        """
        value = self.fields.get(name)
        if value is None and default is not _REQUIRED:
            return default
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not right and kind in (dict, str):
            raise self.error(f"{self.inside}{name} is {json_kind(value)}. Allowed: {allowed}.")
        if not right or not holds(value):
            raise self.error(f"{self.inside}{name} is {json_shown(value)}. Allowed: {allowed}.")
        return value

    def object(self, name: str) -> JsonObject:
        """The object in a field; an empty one where there is none."""
        return JsonObject(self.get(name, dict, "an object", default={}), self.where, f"{self.inside}{name}.")

    def error(self, sentence: str) -> DamagedError:
        """What to raise about the file."""
        return DamagedError(f"{self.where}: {sentence}")


def json_kind(value: object) -> str:
    """What kind of a JSON value it is, for messages."""
    return "missing" if value is None else _KINDS.get(type(value), "a number")


def json_shown(value: object) -> str:
    """A JSON value for messages, cut where it is long."""
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
