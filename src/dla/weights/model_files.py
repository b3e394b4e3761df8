"""A model's files: found once, read once and hashed once, then passed around in place of the model's name. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from dla.errors import DamagedError, UnavailableError, UsageError
from dla.types import NO_PROGRESS, Progress
from dla.weights.model_folder import ModelConfig, parse_config, read_config_bytes
from dla.weights.spec import (
    CONFIG,
    PICKLED,
    SAFE,
    WEIGHT_NAMES,
    WEIGHTS,
    ModelSource,
    is_weight_file,
    resolve_source,
)

if TYPE_CHECKING:
    from dla.weights.hub import HubFiles

__all__ = [
    "CacheDir",
    "ModelFiles",
    "check_extension",
    "name_note",
    "open_files",
    "read_header",
    "read_weight_bytes",
]


CacheDir = str | os.PathLike[str] | None

# The authors' and PyTorch's file names end with the beginning of the file's SHA-256.
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|pth\.tar|safetensors)$")


class ModelFiles:
    """The files of one model. Each is read when it is first asked for, and never again.

    Args:
        name: the model as the user called it.
        source: what that means.
        cache_dir: the hub's cache, else huggingface_hub's own.
        progress: told of the bytes that the hub sends.

    All its attributes but these raise UnavailableError or DamagedError where a file cannot be had or is damaged.
    """

    def __init__(
        self, name: str, source: ModelSource, cache_dir: CacheDir = None, progress: Progress = NO_PROGRESS
    ) -> None:
        self.name, self.source, self.cache_dir, self.progress = name, source, cache_dir, progress

    @property
    def folder(self) -> Path | None:
        """The model folder, if it is one on this disk."""
        return Path(self.source.where) if self.source.kind == "folder" else None

    @property
    def origin(self) -> str:
        """What is read: owner/name@commit, shipped:name, or a path."""
        if self.source.kind == "hub":
            return f"{self._fetched.repo}@{self._fetched.commit}"
        return self.source.name or self.source.where

    @cached_property
    def config_bytes(self) -> bytes | None:
        """`config.json`; None of a bare file, which has none."""
        if self.source.kind == "hub":
            return self._fetched.config
        return None if self.folder is None else read_config_bytes(self.folder)

    @cached_property
    def config(self) -> ModelConfig | None:
        """What `config.json` says; None of a bare file."""
        if self.config_bytes is None:
            return None
        where = f"{CONFIG} of {self.origin}" if self.folder is None else str(self.folder / CONFIG)
        return parse_config(self.config_bytes, where)

    @property
    def weights_path(self) -> Path:
        """The file of weights."""
        return self._fetched.weights_path if self.source.kind == "hub" else self._chosen[0]

    @property
    def weights_name(self) -> str:
        """What to call that file, its extension included."""
        return self.weights_path.name if self.source.kind == "hub" else str(self.weights_path)

    @property
    def weights_title(self) -> str:
        """The same with where it is from, for messages."""
        return f"{self.weights_name} of {self.origin}" if self.source.kind == "hub" else self.weights_name

    @cached_property
    def weights(self) -> bytes:
        """The bytes of the file of weights."""
        return self._fetched.weights if self.source.kind == "hub" else read_weight_bytes(self.weights_path)

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file of weights."""
        return self._fetched.sha256 if self.source.kind == "hub" else hashlib.sha256(self.weights).hexdigest()

    @property
    def choice_notes(self) -> tuple[str, ...]:
        """A sentence where the folder has several files of weights."""
        return () if self.source.kind == "hub" else self._chosen[1]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about the files."""
        return self.choice_notes + name_note(self.weights_name, self.sha256)

    def check_architecture(self, config: ModelConfig, asked: str | None = None) -> None:
        """Raise a DamagedError for another architecture than was asked for, or than the source's name promises."""
        asked = asked or self.source.architecture
        if asked and config.architecture != asked:
            raise DamagedError(f"{self.origin} is a {config.architecture} by its {CONFIG}, but {asked} was asked for.")

    @cached_property
    def _fetched(self) -> HubFiles:
        from dla.weights import hub  # here, because most models are on this disk

        where, revision = self.source.where, self.source.revision
        return hub.fetch(where, revision, cache_dir=self.cache_dir, progress=self.progress)

    @cached_property
    def _chosen(self) -> tuple[Path, tuple[str, ...]]:
        return (Path(self.source.where), ()) if self.folder is None else _weights_in(self.folder)


def open_files(model: str | ModelFiles, cache_dir: CacheDir = None, progress: Progress = NO_PROGRESS) -> ModelFiles:
    """The files of the model that a user named; files that are open already as they are.

    Raises:
        UsageError, UnavailableError: as `resolve_source`.
    """
    if isinstance(model, ModelFiles):
        return model
    return ModelFiles(model, resolve_source(model), cache_dir, progress)


def _weights_in(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The file of weights in a folder, and a note where there are several."""
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name, ()
    for extension in (*SAFE, ".pth", ".pth.tar", ".bin"):
        if several := sorted(folder.glob(f"*{extension}")):
            first, *others = several
            names = ", ".join(path.name for path in others)
            return first, (f"{folder} has several weight files; {first.name} is used, not {names}.",) * bool(others)
    raise UnavailableError(f"{folder} has no weights: neither {WEIGHTS} nor another {', '.join(SAFE + PICKLED)} file.")


def read_weight_bytes(path: Path) -> bytes:
    """The bytes of a weight file.

    Raises:
        UsageError: its extension is another's.
        UnavailableError: no such file, or it cannot be read.
    """
    check_extension(str(path), str(path))  # before a film is read into memory
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnavailableError(f"{path} does not exist.") from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror or error}.") from error


def check_extension(name: str, where: str) -> None:
    """Raise a UsageError for a file whose name does not end like one of weights."""
    if not is_weight_file(name):
        raise UsageError(f"{where} is no weight file. Allowed: {', '.join(SAFE + PICKLED)}")


def name_note(name: str, digest: str) -> tuple[str, ...]:
    """A sentence where a file's name promises another SHA-256."""
    named = _NAMED_DIGEST.search(name)
    if named is None or digest.startswith(named[1]):
        return ()
    found = digest[: len(named[1])]
    return (f"{name} promises a SHA-256 that begins with {named[1]}; it begins with {found}: not the published file.",)


def read_header(file: BinaryIO) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a whole .safetensors file, not read: type (such as "F32") and shape by name.

    The package's own reader would load numpy or torch first.
    """
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in tensors.items()}
