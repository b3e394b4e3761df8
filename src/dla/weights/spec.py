"""What a user may name as a model, and what that means. No torch, so that listing is instant."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from dla.errors import UnavailableError, UnknownNameError, UsageError
from dla.models.registry import TABLE, row

__all__ = [
    "CONFIG",
    "PICKLED",
    "SAFE",
    "WEIGHTS",
    "WEIGHT_NAMES",
    "ModelSource",
    "is_weight_file",
    "resolve_source",
    "shipped",
    "shipped_names",
]


CONFIG, WEIGHTS = "config.json", "model.safetensors"  # the files of a model folder
SAFE, PICKLED = (".safetensors",), (".pth", ".pt", ".bin", ".pth.tar")
# What weights are called in folders, in timm's order of preference; the hub has one of the first two.
WEIGHT_NAMES = (WEIGHTS, "pytorch_model.bin", "pytorch_model.pth", "model.pth")

_SCHEME = re.compile(r"(hf[-_]hub|local-dir|shipped):(.*)", re.IGNORECASE | re.DOTALL)
_REPO = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"\w[\w./-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is: in the repository `where` of the hub at `revision`, or at the path `where`.

    `architecture` is what the source's name promises, if it promises any; `name` what to call it, if not `where`.
    """

    kind: Literal["hub", "folder", "file"]
    where: str
    revision: str | None = None
    architecture: str | None = None
    name: str = ""


def is_weight_file(name: str) -> bool:
    """Whether the name ends like a file of weights."""
    return name.lower().endswith(SAFE + PICKLED)


def resolve_source(text: str) -> ModelSource:
    """The source that `text` names: `dla60`, `dla60.in1k`, `hf-hub:owner/name[@revision]`, `local-dir:PATH`, a path to
    a folder or to a weight file, or `shipped:NAME`. A network's name comes before a path of the same name.

    Raises:
        UsageError: none of these, or a network without released weights.
        UnavailableError: a path named with `local-dir:` is no folder.
    """
    scheme = _SCHEME.fullmatch(text)
    if scheme:
        return _of_scheme(scheme[1].lower().replace("_", "-"), scheme[2])
    name, _, tag = text.partition(".")
    if name in TABLE and "/" not in tag and not is_weight_file(text):  # dla60.in1k, but dla60.pth is a file
        return _released(name, tag)
    path = Path(os.path.expanduser(text))
    if text and os.path.isdir(path):  # unlike Path's, these find no path where a name is too long for one
        return ModelSource("folder", str(path))
    if text and os.path.exists(path):
        return ModelSource("file", str(path))
    if is_weight_file(text):
        raise UnavailableError(f"{text} does not exist.")
    if re.search(r"[/\\:]", text):
        raise UsageError(f'"{text}" is no path that exists. On the hub: hf-hub:{text}; a folder: local-dir:{text}')
    row(name)
    raise AssertionError(text)


def _of_scheme(scheme: str, rest: str) -> ModelSource:
    if scheme == "hf-hub":
        repo, at, revision = rest.partition("@")
        if not _REPO.fullmatch(repo) or ".." in rest or (at and not _REVISION.fullmatch(revision)):
            raise UsageError(
                f'"hf-hub:{rest}" names no repository. Allowed: hf-hub:owner/name or hf-hub:owner/name@revision'
            )
        return ModelSource("hub", repo, revision or None)
    if scheme == "shipped":
        return ModelSource("folder", str(shipped(rest)), name=f"shipped:{rest}")
    if not rest:
        raise UsageError('"local-dir:" names no folder. Allowed: local-dir:PATH, such as local-dir:.')
    path = Path(os.path.expanduser(rest))
    if not os.path.isdir(path):
        raise UnavailableError(f"{path} is no folder. A model folder holds {CONFIG} and {WEIGHTS}.")
    return ModelSource("folder", str(path))


def _released(name: str, tag: str) -> ModelSource:
    r = row(name)
    if r.tag is None:
        raise UsageError(f"{name} has no released weights. Try: the path of a folder or file with some.")
    if tag and tag != r.tag:
        raise UnknownNameError("released set of weights", f"{name}.{tag}", [f"{name}.{r.tag}"])
    return ModelSource("hub", f"timm/{name}.{r.tag}", architecture=name)


def shipped(name: str) -> Path:
    """The folder of a network that comes inside the package.

    Raises:
        UnknownNameError: none has this name.
    """
    if name not in shipped_names():
        raise UnknownNameError("shipped network", name, shipped_names())
    return _shipped_root() / name


def shipped_names() -> list[str]:
    """The networks that come inside the package."""
    return sorted(path.parent.name for path in _shipped_root().glob(f"*/{CONFIG}"))


def _shipped_root() -> Path:
    return Path(str(files("dla").joinpath("shipped")))
