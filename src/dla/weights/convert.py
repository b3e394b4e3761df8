"""Convert a model's weights to a model folder, a bare file for timm, or a file for the authors' code."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors.torch
import torch
from torch import nn

from dla.errors import DlaError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.models.decoder import Transposed
from dla.models.dense import Dense
from dla.models.registry import TABLE
from dla.options import ConvertFormat
from dla.storage.files import write_files
from dla.weights.keys import authors_state
from dla.weights.load import LoadedModel, load_any
from dla.weights.model_folder import WEIGHTS, write_folder
from dla.weights.save import Labels, check_free, described
from dla.weights.spec import warn_of_guesses

_ENDINGS: dict[ConvertFormat, tuple[str, ...]] = {"timm": (".safetensors", ".pth"), "authors": (".pth",)}
_AUTHORS = "https://github.com/ucbdrive/dla"


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What `convert` wrote: a file or folder, the size and SHA-256 of its weights, and notes for the user."""

    path: Path
    format: ConvertFormat
    architecture: str
    size_bytes: int
    sha256: str
    notes: tuple[str, ...] = ()


def convert(
    source: str,
    out: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    to: ConvertFormat | None = None,
    labels: Labels | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    force: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ConvertResult:
    """Write a model's weights as float32, atomically.

    Args:
        source: the model, as in `dla.load`.
        out: a folder, or a file that ends with .safetensors or .pth.
        architecture: the network in a bare file whose tensors fit several networks.
        to: "folder" for a model folder; "timm" for the bare state dict; "authors" for a .pth file that the authors'
            code loads strictly. Defaults to "timm" if `out` has a file's extension, else to "folder".
        labels: for a model folder, the class of each output, in their order: a list of names, or a mapping from names
            to readable labels. Defaults to the source's own.
        preprocessing: for a model folder, how photos must be prepared: a `Preprocessing`, or fields as in `dla.save`.
            Defaults to the source's own; of a bare file, that is a guess, and a `GuessedWarning` says so.
        force: overwrite `out`; in a model folder, its config and weights.
        cache_dir: the hub's cache, by default huggingface_hub's own.

    Raises:
        UsageError: if `out` exists, its extension is wrong, the labels or the preprocessing do not fit, or the
            authors' code has no such network.
        UnavailableError: if the weights are unavailable.
        DamagedError: if the weights are damaged.
        DlaError: if `out` cannot be written.
    """
    path = Path(os.path.expanduser(out))
    to = to or _format_of(path)
    _check_out(path, to, force)
    if to != "folder" and (labels is not None or preprocessing):
        raise UsageError(f"labels and preprocessing are stored only in a model folder, and {path} is a file of weights")
    loaded: LoadedModel[Any] = load_any(source, architecture=architecture, cache_dir=cache_dir)
    notes = loaded.report.notes
    if to == "folder":
        config = described(loaded.config, labels, preprocessing or None)
        sized = isinstance(preprocessing, Preprocessing) or "input_size" in (preprocessing or ())
        warn_of_guesses(loaded.source, config, names=labels is None, size=not sized)
        write_folder(path, loaded.model.state_dict(), config)
        weights = path / WEIGHTS
    else:
        data = _authors_file(loaded) if to == "authors" else _bare_file(loaded.model, path.suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_files({path: data})
        except OSError as error:
            raise DlaError(f"{path} cannot be written: {error.strerror or error}.") from error
        weights = path
        if loaded.config.label_names is not None:
            notes += (f"{path} holds only the weights. Class names, preprocessing and licence need --to folder.",)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ConvertResult(path, to, loaded.config.architecture, weights.stat().st_size, digest, notes)


def _format_of(path: Path) -> ConvertFormat:
    if path.suffix in _ENDINGS["timm"] and not path.is_dir():
        return "timm"
    if path.suffix and not path.is_dir():
        raise UsageError(f"{path} ends with {path.suffix}. Allowed: .safetensors, .pth, or --to folder")
    return "folder"


def _check_out(path: Path, to: ConvertFormat, force: bool) -> None:
    if to not in get_args(ConvertFormat):
        raise UsageError(f"to is {to!r}. Allowed: {', '.join(get_args(ConvertFormat))}")
    if to != "folder" and path.suffix not in _ENDINGS[to]:
        raise UsageError(f"{path} must be a file that ends with {' or '.join(_ENDINGS[to])}, for --to {to}")
    if to != "folder" and path.is_dir():
        raise UsageError(f"{path} is a folder; --to {to} writes a file")
    check_free(path, force)


def _bare_file(model: nn.Module, ending: str) -> bytes:
    state = model.state_dict()
    if ending == ".safetensors":
        return safetensors.torch.save(state, metadata={"format": "pt"})
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _authors_file(loaded: LoadedModel[Any]) -> bytes:
    model, name = loaded.model, loaded.config.architecture
    if TABLE[name].origin != _AUTHORS:
        known = ", ".join(r.name for r in TABLE.values() if r.origin == _AUTHORS)
        raise UsageError(f"the authors' code has no {name}. Allowed: {known}")
    if isinstance(model, Dense):
        _check_authors_dense(loaded)
    else:
        stride, pool = model.feature_info[-1]["reduction"], model.global_pool.pool_type
        if (model.in_chans, stride, pool) != (3, 32, "avg") or not model.num_classes:
            raise UsageError(
                "the authors' code has 3 channels, output stride 32, average pooling and a classifier, but "
                f"{loaded.origin} has {model.in_chans}, {stride}, {pool!r} and {model.num_classes} classes"
            )
    buffer = io.BytesIO()
    # the legacy format: the authors' code runs on a PyTorch that reads no other
    torch.save(OrderedDict(authors_state(model)), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _check_authors_dense(loaded: LoadedModel[Any]) -> None:
    config, model = loaded.config, loaded.model
    if not isinstance(model.up, Transposed):
        raise UsageError(
            f"the authors' code upsamples by transposed convolutions, and {loaded.origin} interpolates, so that its "
            "weights do not fit. Only networks made with up='authors' can be written for it"
        )
    stride = config.model_args.get("output_stride", 32)
    if (config.in_chans, stride) != (3, 32):
        raise UsageError(
            f"the authors' code has 3 channels and output stride 32, but {loaded.origin} has {config.in_chans} and "
            f"{stride}"
        )
