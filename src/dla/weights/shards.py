"""Read weights that are parted into several .safetensors files, as Hugging Face's libraries write large ones.

`model.safetensors.index.json` names the file of each tensor. The files are joined in memory to the bytes of one
.safetensors file, so that all that follows sees a single one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dla.errors import DamagedError, UnavailableError
from dla.storage.files import JsonObject, parse_object, read_bytes
from dla.weights.model_folder import INDEX

MOST_INDEX_BYTES, MOST_SHARDS = 10_000_000, 1000
_NAME = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)  # in the index's own folder


def shard_names(index: bytes, where: str) -> dict[str, str]:
    """Return the file of each tensor, from the bytes of an index; `where` names it in messages.

    Raises:
        DamagedError: it is not an index, names a file outside its folder, or too many files.
    """
    if len(index) > MOST_INDEX_BYTES:
        raise DamagedError(f"{where} has {len(index):,} bytes. Allowed: up to {MOST_INDEX_BYTES:,}.")
    places = JsonObject(parse_object(index, where), where).get("weight_map", dict, "the file of each tensor")
    for name in places.values():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            shown = json.dumps(name)[:60]
            raise DamagedError(f"{where} names the file {shown}. Allowed: a .safetensors file in its own folder.")
    count = len(set(places.values()))
    if not 0 < count <= MOST_SHARDS:
        raise DamagedError(f"{where} names {count:,} files. Allowed: 1 to {MOST_SHARDS:,}.")
    return dict(places)


def read_index(path: Path) -> bytes:
    """Return the bytes of an index.

    Raises:
        UnavailableError: it cannot be read.
        DamagedError: it is too large.
    """
    return read_bytes(path, MOST_INDEX_BYTES)


def has_all_shards(folder: Path) -> bool:
    """Return whether a folder has an index and every file that it names."""
    try:
        names = shard_names(read_index(folder / INDEX), INDEX).values()
    except UnavailableError:
        return False
    return all((folder / name).is_file() for name in names)


def join_shards(index: bytes, where: str, read: Callable[[str], bytes]) -> bytes:
    """Return the bytes of one .safetensors file with the tensors of all files that an index names.

    Args:
        index: the bytes of the index.
        where: its name, for messages.
        read: returns the bytes of a file by its name in the index.

    Raises:
        DamagedError: the index or a file is damaged, or they do not agree.
    """
    places = shard_names(index, where)
    header: dict[str, Any] = {}
    parts, size = [], 0
    for shard in sorted(set(places.values())):
        tensors = _tensors(read(shard), f"{shard}, which {where} names,")
        wanted = {name for name, place in places.items() if place == shard}
        if wrong := sorted(wanted ^ tensors.keys()):
            there = "is not in" if wrong[0] in wanted else "belongs to another file than"
            raise DamagedError(f"{where}: the tensor {wrong[0][:80]} {there} {shard}. Try: download both again.")
        for name, tensor in tensors.items():
            data = tensor["data"]
            header[name] = {
                "dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [size, size + len(data)],
            }  # fmt: skip
            parts.append(data)
            size += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *parts))


def _tensors(data: bytes, where: str) -> dict[str, Any]:
    """Return type, shape and bytes of each tensor in a .safetensors file, by name."""
    from safetensors import SafetensorError, deserialize

    try:
        return dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise DamagedError(
            f"{where} {other_kind(data) or 'is truncated or damaged'}. Try: download it again."
        ) from error


def other_kind(data: bytes) -> str:
    """Return what a file without weights is, as the end of a sentence; '' if unknown."""
    head = data[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights themselves. Try: git lfs pull"
    if head.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "is a web page, not weights. Try: download it again and check the address"
    return "is a text file, not weights" if re.fullmatch(rb"[\t\n\r\x20-\x7e]*", head) else ""


def stored_bytes(weights: Path) -> int:
    """Return the size of a weight file, or of all files that an index names."""
    if weights.name != INDEX:
        return weights.stat().st_size
    names = set(shard_names(read_index(weights), str(weights)).values())
    return sum((weights.parent / name).stat().st_size for name in names)
