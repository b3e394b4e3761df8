"""List the photos in tar and zip archives with their places, and unpack one in memory. Nothing is ever extracted.

The names of members are labels only. What is no plain file, or could take more memory than a photo may, is listed with
a fault.
"""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dla.errors import ImageError, InputError, UsageError
from dla.storage.stores import is_remote, open_store

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MOST_RATIO = 200  # of a member's size to its compressed size; no photo is compressible further
_MOST_HEADER_BYTES = 2**20  # of one member's names and attributes
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive, with fields of `dla.images.located.PhotoPlace`. An empty name: the archive itself."""

    name: str
    size: int = 0
    offset: int = 0
    packed: int | None = None
    fault: InputError | None = None


def archive_kind(path: str) -> str:
    """Return "tar" or "zip" by the suffix of a path, or "".

    Raises:
        UsageError: the archive is compressed as a whole.
    """
    name = path.lower()
    if name.endswith(COMPRESSED):
        raise UsageError(
            f"{path} is compressed as a whole, so no photo in it can be read by itself. Uncompress it to a .tar, as "
            "in: gunzip photos.tar.gz"
        )
    return "tar" if name.endswith(".tar") else "zip" if name.endswith(".zip") else ""


def members(file: str, wanted: Callable[[str], bool]) -> Iterator[Member]:
    """Yield the members of an archive whose names are `wanted`, in its order, and those with a fault.

    Names seen before, links, devices and archives in it have a fault.
    """
    seen: set[int] = set()
    read = _tar if archive_kind(file) == "tar" else _zip
    try:
        with closing(open_store(file).open(file) if is_remote(file) else open(file, "rb")) as opened:
            for member in read(opened):
                if member.fault is None and _is_archive(member.name):
                    member = _faulty(member, "is an archive itself. Unpack it")
                elif member.fault is None and not wanted(member.name):
                    continue
                key = hash(member.name)
                yield _faulty(member, "has the name of an earlier one") if key in seen else member
                seen.add(key)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        ValueError,
        struct.error,
        _HeaderError,
    ) as error:
        yield Member("", fault=InputError("truncated", f"the archive is damaged or cut off after {len(seen):,} photos "
                                          f"({str(error)[:80]}). Get the whole file"))  # fmt: skip
    except OSError as error:
        yield Member("", fault=InputError("read_error", f"the archive could not be read ({error.strerror or error})"))


def _is_archive(name: str) -> bool:
    return name.lower().endswith((".tar", ".zip", *COMPRESSED))


def _faulty(member: Member, what: str, code: str = "bad_member") -> Member:
    return Member(member.name, member.size, member.offset, member.packed, InputError(code, f"it {what}"))


class _HeaderError(Exception):
    """The header of a member is larger than any photo's."""


class _Bounded(io.RawIOBase):
    """A file that is never asked for more than a header at a time: tarfile reads attributes of any size at once."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise _HeaderError(f"a header of {size:,} bytes")
        return bytes(self.file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())


def _tar(file: Any) -> Iterator[Member]:
    end = file.seek(0, 2)
    file.seek(0)
    with tarfile.open(fileobj=_Bounded(file), mode="r:", errorlevel=0) as tar:
        for info in tar:
            tar.members = []  # type: ignore[attr-defined]  # which tarfile would keep all
            if info.isdir():
                continue
            member = Member(info.name, info.size, info.offset_data)
            if not info.isreg() or info.sparse is not None:
                member = _faulty(member, "is a link, a device or a sparse file, not a plain one")
            elif info.offset_data + info.size > end:
                raise EOFError("its last member is incomplete")
            yield member


def _zip(file: Any) -> Iterator[Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            packed = None if info.compress_type == zipfile.ZIP_STORED else info.compress_size
            member = Member(info.filename, info.file_size, info.header_offset, packed)
            kind = info.external_attr >> 28 if info.create_system == 3 else 0  # of Unix: 8 is a plain file
            if info.flag_bits & 1:
                member = _faulty(member, "is encrypted")
            elif kind not in (0, 8):
                member = _faulty(member, "is a link or a device, not a plain file")
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                member = _faulty(member, "is compressed in another way than with deflate")
            elif packed is not None and info.file_size > MOST_RATIO * max(1, packed):
                member = _faulty(member, f"is compressed more than {MOST_RATIO} times, as no photo is", "too_large")
            yield member


def unpack(data: bytes, kind: str, size: int, packed: int | None) -> bytes:
    """Return the bytes of a member from those that stand at its place.

    Raises:
        ImageError: they are not those of the member.
    """
    if kind == "tar":
        if len(data) < size:
            raise ImageError("truncated", "the archive ends before the photo does")
        return data
    try:
        fields = _LOCAL_HEADER.unpack_from(data)
    except struct.error:
        fields = (b"",)
    if fields[0] != b"PK\x03\x04":
        raise ImageError("decode_error", "the archive is damaged: no member begins at this place")
    start = _LOCAL_HEADER.size + fields[9] + fields[10]
    body = data[start : start + (size if packed is None else packed)]
    if packed is not None:
        try:
            body = zlib.decompressobj(-15).decompress(body, size + 1)
        except zlib.error as error:
            raise ImageError("decode_error", "the archive is damaged: the photo cannot be unpacked") from error
    if len(body) != size:
        raise ImageError("decode_error", "the photo does not have the size that the archive says")
    return body
