"""Members of archives that are no plain photos, and archives that are damaged."""

from __future__ import annotations

import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dla.errors import ImageError, UsageError
from dla.images.archives import archive_kind
from dla.images.decode import read_photo
from dla.images.find import PhotoFinder
from dla.images.located import find_located, read_located
from dla.options import ReadOptions
from support.photos import crops, jpeg

PHOTO = jpeg(crops(1)[0])


def tar_of(path: Path, *members: tuple[str, bytes, dict[str, object]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def codes(path: str) -> dict[str, str | None]:
    """The error of each photo that an archive stands for, by its name in it."""
    found: dict[str, str | None] = {}
    for photo in PhotoFinder([path]):
        name = photo.partition("!")[2]
        while name in found:
            name += "'"
        found[name] = code_of(photo)
    return found


def code_of(photo: str) -> str | None:
    try:
        image = read_photo(photo).image
    except ImageError as error:
        return error.code if str(error).startswith(f"{photo}: ") else "the name is missing"
    return None if image.size == read_photo(PHOTO).image.size else "another photo"


def test_a_tar_with_everything_that_is_no_photo(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "a.tar", ("good.jpg", PHOTO, {}), ("dir", b"", {"type": tarfile.DIRTYPE}), ("notes.txt", b"x", {}),
        ("../../up.jpg", PHOTO, {}), ("/etc/abs.jpg", PHOTO, {}), ("good.jpg", PHOTO, {}),
        ("link.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("hard.jpg", b"", {"type": tarfile.LNKTYPE, "linkname": "good.jpg"}),
        ("disk", b"", {"type": tarfile.BLKTYPE}), ("pipe", b"", {"type": tarfile.FIFOTYPE}),
        ("inner.tar", PHOTO, {}), ("inner.tar.gz", PHOTO, {}), (".hidden.jpg", PHOTO, {}), ("empty.jpg", b"", {}),
        ("x" * 300 + ".jpg", PHOTO, {}), ("kätzchen.jpg", PHOTO, {}), ("text.jpg", b"no photo", {}),
    )  # fmt: skip
    assert codes(path) == {
        "good.jpg": None, "../../up.jpg": None, "/etc/abs.jpg": None, "good.jpg'": "bad_member",
        "link.jpg": "bad_member", "hard.jpg": "bad_member", "disk": "bad_member", "pipe": "bad_member",
        "inner.tar": "bad_member", "inner.tar.gz": "bad_member", "empty.jpg": "empty_file", "x" * 300 + ".jpg": None,
        "kätzchen.jpg": None, "text.jpg": "not_an_image",
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["a.tar"]  # nothing is extracted
    finder = PhotoFinder([path])
    list(finder)
    assert finder.skipped == 2


def test_a_zip_with_everything_that_is_no_photo(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.jpg", PHOTO)
        archive.writestr("stored.jpg", PHOTO, zipfile.ZIP_STORED)
        archive.writestr("lzma.jpg", PHOTO, zipfile.ZIP_LZMA)
        archive.writestr("bomb.jpg", bytes(10**6))
        archive.writestr("inner.zip", PHOTO)
        archive.writestr("dir/", b"")
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("secret.jpg", PHOTO)
    data = bytearray(path.read_bytes())
    for start, offset in ((data.rindex(b"PK\x01\x02"), 8), (data.rindex(b"PK\x03\x04"), 6)):
        data[start + offset] |= 1  # encrypted
    path.write_bytes(data)
    assert codes(str(path)) == {
        "good.jpg": None, "stored.jpg": None, "lzma.jpg": "bad_member", "bomb.jpg": "too_large",
        "inner.zip": "bad_member", "link.jpg": "bad_member", "secret.jpg": "bad_member",
    }  # fmt: skip


def lying_zip(data: bytearray) -> None:
    """The size that the directory says is not that of the member."""
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = struct.pack("<I", len(PHOTO) + 9)


def no_header(data: bytearray) -> None:
    data[0:4] = b"PKxx"


def other_bytes(data: bytearray) -> None:
    data[40:400] = bytes(360)


@pytest.mark.parametrize("harm", [lying_zip, no_header, other_bytes])
def test_a_zip_that_lies_about_a_member(harm: Callable[[bytearray], None], tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.jpg", PHOTO)
        archive.writestr("2.jpg", PHOTO)
    data = bytearray(path.read_bytes())
    harm(data)
    path.write_bytes(data)
    assert codes(str(path)) == {"1.jpg": "decode_error", "2.jpg": None}


def test_an_archive_that_ends_early_gives_what_is_before_and_says_so(tmp_path: Path) -> None:
    path = Path(tar_of(tmp_path / "a.tar", ("1.jpg", PHOTO, {}), ("2.jpg", PHOTO, {}), ("3.jpg", PHOTO, {})))
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(PHOTO[:8]) + 100])
    assert codes(str(path)) == {"1.jpg": None, "2.jpg": None, "": "truncated"}
    for name in ("b.tar", "b.zip"):
        (tmp_path / name).write_bytes(b"neither of them" * 100)
        assert codes(str(tmp_path / name)) == {"": "truncated"}
        with pytest.raises(ImageError, match="the archive is damaged or cut off after 0 photos"):
            read_photo(next(iter(PhotoFinder([str(tmp_path / name)]))))


def test_attributes_larger_than_memory_are_not_read(tmp_path: Path) -> None:
    """Their size is a field of the header, and tarfile reads as much as it says."""
    path = tmp_path / "a.tar"
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    assert codes(str(path)) == {"": "truncated"}


def test_limits_hold_in_archives(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", ("1.jpg", PHOTO, {}))
    (photo,) = PhotoFinder([path])
    with pytest.raises(ImageError, match="more than the 100 allowed") as caught:
        read_photo(photo, ReadOptions(max_bytes=100))
    assert caught.value.code == "too_large"
    with pytest.raises(ImageError, match="megapixels"):
        read_photo(photo, ReadOptions(max_pixels=100))


def test_a_changed_archive_is_not_read(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", ("1.jpg", PHOTO, {}))
    (photo,) = PhotoFinder([path])
    os.utime(path, (1, 1))
    with pytest.raises(ImageError, match="changed or replaced") as caught:
        read_photo(photo)
    assert caught.value.code == "changed"
    assert read_photo(str(photo)).image  # by its name alone, what is there now is read


def test_a_name_finds_its_photo(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", ("d/1.jpg", PHOTO, {}), ("d/2!.jpg", PHOTO, {}))
    assert read_located(f"{path}!d/2!.jpg", 10**6) == PHOTO
    assert find_located(f"{path}!nope.jpg") is None
    assert find_located("nope.tar!1.jpg") is None
    assert find_located("plain.jpg") is None
    (tmp_path / "odd!.jpg").write_bytes(PHOTO)
    assert read_photo(tmp_path / "odd!.jpg").image
    with pytest.raises(ImageError, match="there is no such file"):
        read_photo(tmp_path / "odder!.jpg")


def test_kinds() -> None:
    assert [archive_kind(name) for name in ("a.tar", "A.ZIP", "a.jpg", "tar")] == ["tar", "zip", "", ""]
    with pytest.raises(UsageError, match="a.tgz is compressed as a whole.*gunzip"):
        archive_kind("a.tgz")
