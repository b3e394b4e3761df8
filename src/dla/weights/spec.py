"""Resolve the name of a model to its files. Needs no torch, so listing is fast.

`ModelFiles` are found, read and hashed once, and passed on in place of the model's name.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from dla.errors import DamagedError, GuessedWarning, NoSuchPathError, UnavailableError, UnknownNameError, UsageError
from dla.models.registry import TABLE, row
from dla.storage.files import read_bytes
from dla.types import NO_PROGRESS, Progress
from dla.weights.model_folder import CONFIG, INDEX, WEIGHT_NAMES, WEIGHTS, ModelConfig, parse_config, read_config_bytes

if TYPE_CHECKING:
    from dla.weights.hub import HubFiles

SAFE, PICKLED = (".safetensors",), (".pth", ".pt", ".bin", ".pth.tar")

CacheDir = str | os.PathLike[str] | None

# The authors' and PyTorch's file names end with the beginning of the file's SHA-256.
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.(?:pth|pt|bin|pth\.tar|safetensors)$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
_SCHEME = re.compile(r"(hf[-_]hub|local-dir|shipped):(.*)", re.IGNORECASE | re.DOTALL)
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: in the repository `where` of the hub at `revision`, or at the path `where`.

    `architecture` is the network that the name implies, if any; `name` is for messages, if not `where`.
    """

    kind: Literal["hub", "folder", "file"]
    where: str
    revision: str | None = None
    architecture: str | None = None
    name: str = ""


def is_weight_file(name: str) -> bool:
    """Return whether the name has the extension of a weight file."""
    return name.lower().endswith(SAFE + PICKLED)


def resolve_source(text: str) -> ModelSource:
    """Return the source that `text` names.

    It may be `dla60`, `dla60.in1k`, `hf-hub:owner/name[@revision]`, `local-dir:PATH`, a path to a folder or weight
    file, or `shipped:NAME`. A network takes precedence over a path of the same name.

    Raises:
        UsageError: if it is none of these, or a network without released weights.
        UnavailableError: if a path, such as a weight file or the folder of `local-dir:`, does not exist.
    """
    scheme = _SCHEME.fullmatch(text)
    if scheme:
        return _of_scheme(scheme[1].lower().replace("_", "-"), scheme[2])
    name, _, tag = text.partition(".")
    if name in TABLE and "/" not in tag and not is_weight_file(text):  # dla60.in1k, but dla60.pth is a file
        return _released(name, tag)
    path = Path(os.path.expanduser(text))
    if text and os.path.isdir(path):  # unlike Path's, os.path's tests accept names that are too long
        return ModelSource("folder", str(path))
    if text and os.path.exists(path):
        return ModelSource("file", str(path))
    if is_weight_file(text) or re.search(r"^[.~]|[/\\]", text):
        on_hub = _REPO.fullmatch(text) and text[0] != "." and not is_weight_file(text)
        raise NoSuchPathError(f"{text} does not exist." + f" On the hub: hf-hub:{text}" * bool(on_hub))
    if ":" in text:
        raise UsageError(f'"{text}" does not exist. On the hub: hf-hub:OWNER/NAME; a folder: local-dir:PATH')
    row(name)
    raise AssertionError(text)


def _of_scheme(scheme: str, rest: str) -> ModelSource:
    if scheme == "hf-hub":
        repo, at, revision = rest.partition("@")
        if not _REPO.fullmatch(repo) or ".." in rest or (at and not _REVISION.fullmatch(revision)):
            raise UsageError(
                f'"hf-hub:{rest}" is not a repository. Allowed: hf-hub:owner/name or hf-hub:owner/name@revision'
            )
        return ModelSource("hub", repo, revision or None)
    if scheme == "shipped":
        return ModelSource("folder", str(shipped(rest)), name=f"shipped:{rest}")
    if not rest:
        raise UsageError('"local-dir:" names no folder. Allowed: local-dir:PATH, such as local-dir:.')
    path = Path(os.path.expanduser(rest))
    if not os.path.isdir(path):
        raise UnavailableError(f"{path} is not a folder. A model folder holds {CONFIG} and {WEIGHTS}.")
    return ModelSource("folder", str(path))


def _released(name: str, tag: str) -> ModelSource:
    r = row(name)
    if r.tag is None:
        raise UsageError(f"{name} has no released weights. Try: the path of a folder or file with weights.")
    if tag and tag != r.tag:
        raise UnknownNameError("released set of weights", f"{name}.{tag}", [r.tagged_name])
    return ModelSource("hub", f"timm/{r.tagged_name}", architecture=name)


def shipped(name: str) -> Path:
    """Return the folder of a built-in network.

    Raises:
        UnknownNameError: if there is no built-in network of this name.
    """
    if name not in shipped_names():
        raise UnknownNameError("shipped network", name, shipped_names())
    return _shipped_root() / name


def shipped_names() -> list[str]:
    """Return the names of the built-in networks."""
    return sorted(path.parent.name for path in _shipped_root().glob(f"*/{CONFIG}"))


def _shipped_root() -> Path:
    return Path(str(files("dla").joinpath("shipped")))


class ModelFiles:
    """The files of a model, each read at its first use and then cached.

    Args:
        name: the model as the user named it.
        source: what the name resolved to.
        cache_dir: the hub's cache, by default huggingface_hub's own.
        progress: receives the downloaded bytes.

    The other attributes raise an UnavailableError or DamagedError if a file is unavailable or damaged.
    """

    def __init__(
        self, name: str, source: ModelSource, cache_dir: CacheDir = None, progress: Progress = NO_PROGRESS
    ) -> None:
        self.name, self.source, self.cache_dir, self.progress = name, source, cache_dir, progress

    @property
    def folder(self) -> Path | None:
        """The model folder; None for a bare file or a model of the hub."""
        return Path(self.source.where) if self.source.kind == "folder" else None

    @property
    def origin(self) -> str:
        """Where the model is from: owner/name@commit, shipped:name, or a path."""
        if self.source.kind == "hub":
            return f"{self._fetched.repo}@{self._fetched.commit}"
        return self.source.name or self.source.where

    @cached_property
    def config_bytes(self) -> bytes | None:
        """The bytes of `config.json`; None for a bare file."""
        if self.source.kind == "hub":
            return self._fetched.config
        return None if self.folder is None else read_config_bytes(self.folder)

    @cached_property
    def config(self) -> ModelConfig | None:
        """The parsed `config.json`; None for a bare file."""
        if self.config_bytes is None:
            return None
        where = f"{CONFIG} of {self.origin}" if self.folder is None else str(self.folder / CONFIG)
        return parse_config(self.config_bytes, where)

    @property
    def weights_path(self) -> Path:
        """The path of the weight file."""
        return self._fetched.weights_path if self.source.kind == "hub" else self._chosen[0]

    @property
    def weights_name(self) -> str:
        """The name of the weight file, with its extension; the name that several files would have as one."""
        path = self.weights_path.name if self.source.kind == "hub" else str(self.weights_path)
        return path.removesuffix(".index.json")

    @property
    def weights_title(self) -> str:
        """The name of the weight file and its origin, for messages."""
        return f"{self.weights_name} of {self.origin}" if self.source.kind == "hub" else self.weights_name

    @cached_property
    def weights(self) -> bytes:
        """The bytes of the weight file; of several files, joined to one."""
        if self.source.kind == "hub":
            return self._fetched.weights
        if self.weights_path.name != INDEX or self.folder is None:
            return read_weight_bytes(self.weights_path)
        from dla.weights.shards import join_shards, read_index  # here, because most weights are one file

        folder = self.folder
        return join_shards(
            read_index(folder / INDEX), str(folder / INDEX), lambda name: read_weight_bytes(folder / name, shard=True)
        )

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the weight file."""
        return self._fetched.sha256 if self.source.kind == "hub" else hashlib.sha256(self.weights).hexdigest()

    @property
    def choice_notes(self) -> tuple[str, ...]:
        """A note if the folder has several weight files."""
        return () if self.source.kind == "hub" else self._chosen[1]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the files."""
        return self.choice_notes + name_note(self.weights_name, self.sha256)

    def check_architecture(self, config: ModelConfig, asked: str | None = None) -> None:
        """Raise a DamagedError unless the architecture is the one `asked` for, or implied by the source's name."""
        asked = asked or self.source.architecture
        if asked and config.architecture != asked:
            raise DamagedError(f"{self.origin} is a {config.architecture} by its {CONFIG}, but {asked} was asked for.")

    @cached_property
    def _fetched(self) -> HubFiles:
        from dla.weights import hub  # here, because most models are local

        where, revision = self.source.where, self.source.revision
        return hub.fetch(where, revision, cache_dir=self.cache_dir, progress=self.progress)

    @cached_property
    def _chosen(self) -> tuple[Path, tuple[str, ...]]:
        return (Path(self.source.where), ()) if self.folder is None else _weights_in(self.folder)


def open_files(model: str | ModelFiles, cache_dir: CacheDir = None, progress: Progress = NO_PROGRESS) -> ModelFiles:
    """Return the files of the model that a user named; return `ModelFiles` unchanged.

    Raises:
        UsageError: as `resolve_source`.
        UnavailableError: as `resolve_source`.
    """
    if isinstance(model, ModelFiles):
        return model
    return ModelFiles(model, resolve_source(model), cache_dir, progress)


def guesses(source: ModelSource, config: ModelConfig, *, names: bool = True, size: bool = True) -> str:
    """Return a sentence about what is guessed of a bare weight file, names and preprocessing; "" if nothing is."""
    if source.kind != "file" or not (names or size):
        return ""
    _, height, width = config.pretrained_cfg.get("input_size") or (3, 224, 224)
    crop = config.pretrained_cfg.get("crop_pct", 0.875)
    dense = config.task != "classify"  # photos at their own size
    guessed = [f"a size of {height}x{width} pixels, crop {crop:g}"] if size and not dense else []
    if names and config.num_classes and config.task != "edges":
        last = config.num_classes - 1
        guessed.append("ImageNet's class names" if last == 999 else f"the class names class_0 to class_{last}")
    if not guessed:
        return ""
    flags = "--labels FILE" + ("" if dense else " --input-size N")
    return (
        f"{source.where} holds only weights, so {' and '.join(guessed)} are guesses. To set them: "
        f"dla convert {source.where} FOLDER {flags}"
    )


def warn_of_guesses(source: ModelSource, config: ModelConfig, **given: bool) -> None:
    """Issue a `GuessedWarning` with the sentence of `guesses`."""
    if sentence := guesses(source, config, **given):
        warnings.warn(sentence, GuessedWarning, stacklevel=3)


def _weights_in(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return the weight file in a folder, and a note if there are several."""
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name, ()
    for extension in (*SAFE, ".pth", ".pth.tar", ".bin"):
        several = sorted(folder.glob(f"*{extension}"))
        if any(_SHARD.search(path.name) for path in several):
            raise UnavailableError(f"{folder} has weights in several files, but no {INDEX}. Try: download that too.")
        if several:
            first, *others = several
            names = ", ".join(path.name for path in others)
            return first, (f"{folder} has several weight files; {first.name} is used, not {names}.",) * bool(others)
    raise UnavailableError(f"{folder} has no weights: neither {WEIGHTS} nor another {', '.join(SAFE + PICKLED)} file.")


def read_weight_bytes(path: Path, *, shard: bool = False) -> bytes:
    """Return the bytes of a weight file; `shard`: it may be one of several.

    Raises:
        UsageError: if it does not have the extension of a weight file, or is one of several without `shard`.
        UnavailableError: if it does not exist or cannot be read.
    """
    check_extension(str(path), str(path))  # before a large other file is read into memory
    if _SHARD.search(path.name) and not shard:
        raise UsageError(f"{path} holds only a part of the weights. Try: the folder with all of them and {INDEX}.")
    return read_bytes(path, math.inf)


def check_extension(name: str, where: str) -> None:
    """Raise a UsageError unless the name has the extension of a weight file."""
    if name.endswith(f".{INDEX.partition('.')[2]}"):
        raise UsageError(f"{where} only says which files hold the weights. Try: its folder.")
    if not is_weight_file(name):
        raise UsageError(f"{where} is not a weight file. Allowed: {', '.join(SAFE + PICKLED)}")


def name_note(name: str, digest: str) -> tuple[str, ...]:
    """Return a note if the file's name contains the beginning of another SHA-256."""
    named = _NAMED_DIGEST.search(name)
    if named is None or digest.startswith(named[1]):
        return ()
    actual = digest[: len(named[1])]
    return (f"{name} is not the published file: its SHA-256 begins with {actual}, not with {named[1]}.",)


def read_header(file: BinaryIO) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type (such as "F32") and shape of each tensor in a .safetensors file, by name, without reading the data.

    The safetensors package's own reader imports numpy or torch.
    """
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in tensors.items()}
