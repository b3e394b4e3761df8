"""Read labelled photos from tar and zip archives, WebDataset's among them, and from folders in stores."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from dla.data.sources import LabelledPhotos, split_word
from dla.errors import DamagedError, ImageError, UnavailableError, UsageError
from dla.images.archives import archive_kind
from dla.images.find import PHOTO_SUFFIXES
from dla.images.located import MEMBER, LocatedPhoto, of_stored, photos_in, read_located
from dla.storage.stores import is_remote, open_store

_MOST_LABEL_BYTES = 4096
_AS_PATH = re.compile(r"((?:s3|gs)|fsspec:\w+):/+")  # a Path has one slash where an address has two

Named = tuple[PurePosixPath, LocatedPhoto]


def address_of(data: str | Path) -> str | None:
    """Return the address of data in a store, though it was made a path; None if it is a path."""
    text = str(data)
    return _AS_PATH.sub(r"\1://", text, count=1) if _AS_PATH.match(text) else None


def is_archived(data: str | Path) -> bool:
    """Return whether data is in a store, is an archive, or is a folder of archives alone."""
    if address_of(data) is not None:
        return True
    if os.path.isfile(data):
        return bool(archive_kind(str(data)))
    return os.path.isdir(data) and bool(_archives_in(Path(data)))


def _archives_in(folder: Path) -> list[str]:
    """Return the archives of a folder that has no folders, such as the shards of a WebDataset."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    if any(entry.is_dir() for entry in entries):
        return []
    return [str(entry) for entry in entries if entry.suffix.lower() in (".tar", ".zip")]


def read_archived(data: str | Path) -> dict[str, LabelledPhotos]:
    """Read the photos by the name of their split, or all as "" if there are no splits.

    The classes are the texts of WebDataset's `KEY.cls` files, else the folders in the archive or the store; the splits
    are the folders above them, or the names of several archives (`train-000000.tar`).

    Raises:
        UnavailableError: there are no photos, or an archive is damaged.
        UsageError: the photos are in no folders.
    """
    address = address_of(data)
    if address is not None and not archive_kind(address):
        found = list(open_store(address).walk(address))
        archives = [stored.uri for stored in found if archive_kind(stored.uri)]
        base = address.rstrip("/") + "/"
        named = [(PurePosixPath(stored.uri.removeprefix(base)), of_stored(stored)) for stored in found]
        return _of_archives(archives) if archives else _labelled(address, _photos(named), {})
    if address is None and os.path.isdir(data):
        return _of_archives(_archives_in(Path(data)))
    return _of_archive(address or str(data))


def _of_archives(files: Iterable[str]) -> dict[str, LabelledPhotos]:
    whole: dict[str, LabelledPhotos] = {}
    for file in files:
        name = re.sub(r"[-_.]?\d+$", "", PurePosixPath(file).stem)
        for split, source in _of_archive(file).items():
            whole.setdefault(split or _split_of(name), LabelledPhotos()).extend(source)
    if "" in whole and len(whole) > 1:
        named = ", ".join(sorted(whole.keys() - {""}))
        raise UsageError(f"some archives are named like splits ({named}), and others are not. Rename them")
    return whole


def _split_of(name: str) -> str:
    return name if split_word(name) else ""


def _of_archive(file: str) -> dict[str, LabelledPhotos]:
    named, labels = [], {}
    for photo in photos_in(file):
        member = PurePosixPath(photo.partition(MEMBER)[2])
        if not member.name:
            raise DamagedError(f"{file}: {photo.fault.message if photo.fault else 'it is damaged'}")
        if member.suffix == ".cls":
            labels[_key(member)] = photo
        else:
            named.append((member, photo))
    texts = {key: _label(photo) for key, photo in labels.items()}
    return _labelled(file, _photos(named), texts)


def _photos(named: Iterable[Named]) -> list[Named]:
    return [(path, photo) for path, photo in named if path.suffix.lower() in PHOTO_SUFFIXES and path.name[0] != "."]


def _key(member: PurePosixPath) -> str:
    """Return what the files of one sample of a WebDataset share: the path up to the first dot in its name."""
    return str(member.with_name(member.name.partition(".")[0]))


def _label(photo: LocatedPhoto) -> str:
    try:
        text = read_located(photo, _MOST_LABEL_BYTES).decode().strip()
    except (ImageError, UnicodeDecodeError) as error:
        raise DamagedError(f"{photo}: it cannot be read as the name of a class ({error})") from error
    if not text:
        raise DamagedError(f"{photo}: the class is empty")
    return text


def _labelled(data: str, named: list[Named], labels: dict[str, str]) -> dict[str, LabelledPhotos]:
    if not named:
        raise UnavailableError(f"{data} has no photos")
    sources: dict[str, LabelledPhotos] = {}
    if labels:
        source = sources.setdefault("", LabelledPhotos())
        unlabelled = [photo for path, photo in named if _key(path) not in labels]
        for path, photo in named:
            if _key(path) in labels:
                source.add(photo, labels[_key(path)], photo)
        if unlabelled:
            source.notes.append(f"{data}: photos without a .cls file are not used ({len(unlabelled):,}), such as "
                                f"{unlabelled[0]}")  # fmt: skip
        return sources
    for split, class_id, photo in _by_folders(data, named):
        sources.setdefault(split, LabelledPhotos()).add(photo, class_id, photo)
    return sources


def _by_folders(data: str, named: list[Named]) -> Iterable[tuple[str, str, LocatedPhoto]]:
    """Return the split, the class and the photo of each: split/class/..., or class/..., in one folder or in none."""
    folders = [path.parts[:-1] for path, _ in named]
    while min(map(len, folders)) > 1 and len({parts[0] for parts in folders}) == 1 and not _split_of(folders[0][0]):
        folders = [parts[1:] for parts in folders]
    if not min(map(len, folders)):
        loose = next(photo for parts, (_, photo) in zip(folders, named, strict=True) if not parts)
        raise UsageError(f"{data} has photos in no folder of a class, such as {loose}. Put each class into a folder, "
                         "or give each photo a KEY.cls file with the name of its class")  # fmt: skip
    divided = min(map(len, folders)) > 1 and all(_split_of(parts[0]) for parts in folders)
    for parts, (_, photo) in zip(folders, named, strict=True):
        yield (parts[0], parts[1], photo) if divided else ("", parts[0], photo)


def bytes_of(photo: str) -> bytes:
    """Return the encoded bytes of a photo: of a file, or in an archive or a store."""
    if isinstance(photo, LocatedPhoto) or is_remote(photo):
        return read_located(photo, 2**31)
    return Path(photo).read_bytes()
