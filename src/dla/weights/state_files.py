"""Read weight files: safetensors, and PyTorch's format without executing code in it."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dla.errors import DamagedError, UnavailableError
from dla.weights.keys import AVERAGED, CONTAINERS, unwrap
from dla.weights.shards import other_kind
from dla.weights.spec import SAFE, check_extension, name_note, read_weight_bytes


@dataclass(frozen=True, slots=True)
class WeightFile:
    """The content of a file: its tensors, the SHA-256 of its bytes, and notes for the user."""

    state: dict[str, Tensor]
    digest: str
    notes: tuple[str, ...] = ()


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors, .pth, .pt, .bin or .pth.tar file, by their names in the file.

    Raises:
        UnavailableError: if the file does not exist, or holds more than tensors (nothing in it is executed).
        DamagedError: if it is empty, truncated, altered, or holds no weights.
        UsageError: for another extension.
    """
    return parse_weights(read_weight_bytes(Path(path)), os.fspath(path)).state


def parse_weights(data: bytes, name: str, where: str = "", digest: str = "") -> WeightFile:
    """Return the tensors in the bytes of a weight file called `name`, whose extension determines the format.

    `where` names the file in messages, by default `name`; `digest` is the SHA-256 of the bytes, if known.

    Raises:
        UnavailableError: as `read_state`.
        DamagedError: as `read_state`.
        UsageError: as `read_state`.
    """
    where = where or name
    check_extension(name, where)
    if not data:
        raise DamagedError(f"{where} is empty (0 bytes). Try: download or copy it again.")
    digest = digest or hashlib.sha256(data).hexdigest()
    notes = name_note(name, digest)
    if name.lower().endswith(SAFE):
        return WeightFile(_parse_safetensors(data, where), digest, notes)
    inner, container = unwrap(_parse_pickled(data, where))
    if container in AVERAGED:
        notes += (f"{where} is a training checkpoint; its averaged weights ({container}) are used.",)
    return WeightFile(_tensors_only(inner, where), digest, notes)


def _parse_safetensors(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        if data.startswith((b"PK\x03\x04", b"\x80\x02")):
            raise DamagedError(f"{where} is a PyTorch file, not safetensors. Try: name it .pth.") from error
        raise DamagedError(f"{where} {other_kind(data) or f'is truncated or damaged ({error})'}.") from error


def _parse_pickled(data: bytes, where: str) -> Mapping[Any, Any]:
    if data[8:10] == b'{"':
        raise DamagedError(f"{where} is a safetensors file, not PyTorch's. Try: name it .safetensors.")
    _check_archive(data, where)
    try:
        # timm's checkpoints contain an argparse.Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickle protocols, which the errors below cover
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a forged or truncated file makes the parser raise anything
        if refused := _refused(error, data):
            raise UnavailableError(
                f"{where} holds more than tensors ({refused}); it was not loaded and nothing in it was executed. "
                "Try: convert it to .safetensors on a machine where you trust it."
            ) from error
        raise DamagedError(f"{where} {other_kind(data) or 'is truncated, damaged or not a PyTorch file'}.") from error
    if not isinstance(loaded, Mapping):
        raise DamagedError(f"{where} does not hold tensors by name, but a value of the type {type(loaded).__name__}.")
    return loaded


def _refused(error: Exception, data: bytes) -> str:
    """Return the type that PyTorch's restricted reader refused to construct; '' for another error."""
    refused = re.search(r"GLOBAL ((?:\w+\.)*(\w+)) ", str(error))
    # In a file truncated within an allowed name, the reader sees the name without its last byte.
    truncated = refused and data.rpartition(b"\n")[2][:-1] == refused[2].encode()
    return refused[1] if refused and not truncated else ""


def _check_archive(data: bytes, where: str) -> None:
    """Refuse programs, and compressed archives: PyTorch writes none, and a forged one could decompress to any size."""
    try:
        entries = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # the legacy format or a truncated file, which PyTorch's reader handles
    names = [entry.filename.partition("/")[2] for entry in entries]
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise UnavailableError(
            f"{where} is a TorchScript archive, a program with its weights; it was not loaded and nothing in it was "
            "executed. Try: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth') where you trust it."
        )
    if "archive_format" in names:
        raise UnavailableError(
            f"{where} is a program that torch.export wrote, not only weights; it was not loaded. "
            "Try: torch.save(torch.export.load(FILE).state_dict, 'weights.pth') where you trust it."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise DamagedError(f"{where} is a compressed archive, which PyTorch does not write. Try: unpack it first.")


def _tensors_only(state: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            continue
        if any(isinstance(value, Mapping) for value in state.values()):
            entries = ", ".join(str(name)[:40] for name in list(state)[:8])
            raise DamagedError(
                f"{where} is a checkpoint, but none of its entries ({entries}) is called as state dicts are "
                f"({', '.join(CONTAINERS)}). Try: torch.save(checkpoint[ENTRY], 'weights.pth')."
            )
        raise DamagedError(
            f"{where}: {str(name)[:60]} is not a tensor by name, but of the type {type(value).__name__}."
        )
    return dict(state)
