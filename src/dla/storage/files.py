"""Write files and folders atomically, and read JSON.

A file is written under a temporary name (`.part-1f2e3d4c5b6a-NAME`) in the same folder, flushed to disk and renamed;
then the rename is flushed. Readers see the old content or the new, concurrent writers do not collide, and a full disk
changes nothing. A killed process leaves at most a file that `is_leftover` recognizes and the next writer in that folder
removes: the temporary file is locked while its process lives.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dla.errors import DamagedError, UnavailableError, UsageError

_ASIDE = ".part-"
_DAY_S = 24 * 3600
_LONGEST_NAME = 255  # bytes, on every usual file system
WRITING: list[int] = []  # the threads that are writing a file at this moment
_NO_FSYNC_OF_FOLDERS = (errno.EINVAL, errno.ENOTSUP)


def write_files(files: Mapping[Path, bytes], *, fsync: bool = True) -> None:
    """Write files of one folder, in this order: each atomically, and none if one of them cannot be written.

    Args:
        files: content by path.
        fsync: flush them to disk. Without it a power cut may leave a torn file, so turn it off only for files that
            carry a checksum and are cheaper to rebuild than to flush.

    Raises:
        OSError: from the disk; nothing has changed.
    """
    with ExitStack() as held:
        asides = {path: held.enter_context(_held(path)) for path in files}
        for path, data in files.items():
            with asides[path].open("r+b") as file, _writing():
                file.write(data)
                if fsync:
                    _flush(file)
        for path, aside in asides.items():
            aside.replace(path)
    if fsync:
        fsync_dir(next(iter(files)).parent)


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically; write into a pipe or a device directly.

    Raises:
        OSError: from the disk, with the path as the caller gave it; the old file is unchanged.
    """
    place = Path(path).resolve()
    with errors_name(path):
        if place.exists() and not place.is_file():
            place.write_bytes(data)
        else:
            write_files({place: data})


@contextmanager
def open_aside(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` when the `with` block ends without an error.

    Raises:
        OSError: from the disk, with this path; the old file is unchanged.
    """
    place = Path(path)
    with errors_name(path):
        with _held(place) as aside:
            with aside.open("r+b") as file:
                yield file
                _flush(file)
            aside.replace(place)
        fsync_dir(place.parent)


@contextmanager
def open_folder_aside(folder: Path, last: str = "") -> Iterator[Path]:
    """Create a temporary folder that replaces `folder` when the `with` block ends without an error.

    `folder` must be missing or empty. An existing one may be a link, a mount point or the working directory, so it is
    not replaced: the files move into it, the one called `last` at the end.

    Raises:
        OSError: from the disk; no `folder` is created then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _held(folder, Path.mkdir) as aside:
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


def check_new(path: str | os.PathLike[str], *, resumable: bool = False) -> None:
    """Check that no file with content would be replaced; pipes, devices and empty files are written into.

    `resumable` says whether the message also offers --resume.

    Raises:
        UsageError: there is such a file.
    """
    if os.path.isfile(path) and os.path.getsize(path):
        ways = "--resume continues it, --force replaces it" if resumable else "--force replaces it"
        raise UsageError(f"{os.fspath(path)} exists already: {ways}")


def is_leftover(name: str) -> bool:
    """Return whether this is the temporary name of a file or folder being written, or left by a killed process."""
    return name.startswith(_ASIDE)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its contents. It is renamed first, so a partly removed one never has its name."""
    from dla.storage.locks import locked

    aside = folder.rename(_aside(folder))
    with locked(aside):
        shutil.rmtree(aside)


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Remove what killed processes left in a folder; what a living process is writing stays.

    Another machine's temporary files, whose locks may be unknown here, are removed when they are a day old; with
    `alone` at once, because no other process writes into the folder.
    """
    from dla.storage.locks import locked  # here, because a command that writes nothing needs no locks

    with suppress(OSError):
        for name in filter(is_leftover, os.listdir(folder)):
            path = folder / name
            with suppress(OSError):
                foreign = not name.startswith(_ASIDE + _machine())
                if alone or not foreign or time.time() - path.lstat().st_mtime > _DAY_S:
                    with locked(path) as is_ours:
                        if is_ours or alone:
                            shutil.rmtree(path) if path.is_dir() else path.unlink()


def fsync_dir(folder: Path) -> None:
    """Flush a folder's entries to disk, so that renames in it survive a power cut."""
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with _writing():
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC_OF_FOLDERS:  # some network file systems
            raise
    finally:
        os.close(descriptor)


@contextmanager
def errors_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make disk errors name `path` if they name no file (a full disk) or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or is_leftover(os.path.basename(os.fsdecode(error.filename))):
            error.filename = os.fspath(path)
        raise


@contextmanager
def _held(path: Path, create: Callable[[Path], object] = lambda aside: aside.open("xb").close()) -> Iterator[Path]:
    """Yield a new temporary file or folder beside `path`, locked; remove it at the end if it was not renamed."""
    from dla.storage.locks import locked

    if (folder := path.parent.absolute()) not in _tidied:
        _tidied.add(folder)
        remove_leftovers(folder)
    while True:
        aside = _aside(path)
        create(aside)
        with locked(aside) as is_ours:
            if is_ours is False or not aside.exists():  # another process took it for one of a killed process
                continue
            try:
                yield aside
            finally:
                if aside.is_dir():
                    shutil.rmtree(aside, ignore_errors=True)
                else:
                    aside.unlink(missing_ok=True)
            return


_tidied: set[Path] = set()  # folders in which this process has removed what killed ones left


def _aside(path: Path) -> Path:
    """Return an unused temporary path in the same folder."""
    begin = f"{_ASIDE}{_machine()}{os.urandom(4).hex()}-"
    return path.with_name(begin + os.fsdecode(os.fsencode(path.name)[: _LONGEST_NAME - len(begin)]))


def _machine() -> str:
    """Return four digits that tell this machine's temporary files from those of others in a shared folder."""
    name = os.uname().nodename if hasattr(os, "uname") else ""
    return f"{zlib.crc32(name.encode()) & 0xFFFF:04x}"


def _flush(file: IO[bytes]) -> None:
    with _writing():
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _writing() -> Iterator[None]:
    WRITING.append(threading.get_ident())
    try:
        yield
    finally:
        WRITING.remove(threading.get_ident())


MOST_JSON_BYTES = 2**28  # twice a config of a million classes
_MOST_JSON_DEPTH = 100  # Python's limit is hundreds, and depends on where a value is read or written


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        UnavailableError: if the file does not exist or cannot be read.
        DamagedError: if it is not a JSON object, or larger than `most_bytes`.
    """
    return parse_object(read_bytes(path, most_bytes), str(path))


def read_bytes(path: Path, most_bytes: float = MOST_JSON_BYTES) -> bytes:
    """Return the bytes of a file of at most `most_bytes`; raises as `read_json`."""
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
    """Return the object in the bytes of a JSON file; `where` names the file in messages.

    Raises:
        DamagedError: if it is not a JSON object.
    """
    value = parse_json(data, where)
    if not isinstance(value, dict):
        raise DamagedError(f"{where} is not a JSON object.")
    return value


def parse_json(data: bytes, where: str) -> Any:
    """Return the value in the bytes of a JSON file; `where` names the file in messages.

    As in Python's `json`, the last of repeated keys wins, and NaN and Infinity are numbers.

    Raises:
        DamagedError: if it is not JSON, or nested deeper than anything that can be written again.
    """
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise _nested(where) from error
    except ValueError as error:
        raise DamagedError(f"{where} is not valid JSON: {error}.") from error
    inner, depth = [value], 1
    while inner := [one for outer in inner for one in _values(outer) if isinstance(one, dict | list)]:
        depth += 1
        if depth > _MOST_JSON_DEPTH:
            raise _nested(where)
    return value


def _values(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _nested(where: str) -> DamagedError:
    return DamagedError(f"{where} is not valid JSON: it is nested deeper than {_MOST_JSON_DEPTH} levels.")


Kind = type | tuple[type, ...]
_REQUIRED = object()
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object in a JSON file, whose fields are checked as they are read.

    `where` names the file in messages, `inside` the object in it: "" for the root, or a prefix such as "model_args.".
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
        """Return the value of a field: of type `kind`, with `holds(value)` true; or `default` if it is missing.

        Raises:
            DamagedError: "NAME is VALUE. Allowed: ALLOWED." for another value, or a missing one without `default`.
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
        """Return the object in a field; an empty one if the field is missing."""
        return JsonObject(self.get(name, dict, "an object", default={}), self.where, f"{self.inside}{name}.")

    def objects(self, name: str) -> list[JsonObject]:
        """Return the objects of the list in a field; raises as `get`."""
        inside = f"{self.inside}{name}."
        values = self.get(name, list, "a list of objects", lambda values: all(isinstance(v, dict) for v in values))
        return [JsonObject(value, self.where, inside) for value in values]

    def texts(self, name: str) -> tuple[str, ...]:
        """Return the texts of the list in a field; raises as `get`."""
        return tuple(self.get(name, list, "a list of texts", lambda values: all(isinstance(v, str) for v in values)))

    def error(self, sentence: str) -> DamagedError:
        """Return the error to raise about the file."""
        return DamagedError(f"{self.where}: {sentence}")


def json_kind(value: object) -> str:
    """Return the kind of a JSON value, for messages."""
    return "missing" if value is None else _KINDS.get(type(value), "a number")


def json_shown(value: object) -> str:
    """Return a JSON value as text for messages, truncated to 40 characters."""
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
