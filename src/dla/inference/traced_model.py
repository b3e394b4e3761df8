"""A model's files as what engines are made from, without torch where the very same files were opened before.

Opening is strict, and PyTorch does it. What it finds, the network's operations and its config, is remembered by the
SHA-256 of the files. Bundled networks carry theirs beside their weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dla.engines.graph import Network, OpGraph
from dla.errors import OnlyTorchError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.storage import cache
from dla.types import NO_PROGRESS, Array, Progress
from dla.weights.model_folder import CONFIG, WEIGHTS, ModelConfig, parse_config
from dla.weights.spec import SAFE, resolve_source

if TYPE_CHECKING:
    from dla.models.dla import DLA

__all__ = ["OPS", "TracedModel", "open_in_torch", "open_traced", "shipped_ops"]


OPS = "ops.json"  # beside the weights of a network that comes along
KIND, FORMAT = "ops", "1"


@dataclass(frozen=True, slots=True)
class TracedModel:
    """What a network for photos is: `origin` is what was read, `digest` the SHA-256 of its weight file.

    `folder` is the model folder on this disk, if it is one.
    """

    config: ModelConfig
    preprocessing: Preprocessing
    origin: str
    digest: str
    notes: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class _Files:
    """A model folder's files, unread by PyTorch; `ops` is where the operations of a bundled network are."""

    origin: str
    config: bytes
    weights: bytes
    folder: Path | None = None
    ops: Path | None = None

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.weights).hexdigest()

    @cached_property
    def key(self) -> str:
        return cache.key_of(FORMAT, self.digest, hashlib.sha256(self.config).hexdigest())


def open_traced(
    source: str, cache_dir: str | None = None, progress: Progress = NO_PROGRESS
) -> tuple[Network, TracedModel]:
    """The network that `source` names, for any engine.

    Raises:
        UsageError: it takes another number of channels than a photo has.
        OnlyTorchError: it has parts that no other engine knows.
        UnknownNameError, UnavailableError, DamagedError: as `dla.load`.
    """
    files = _files(source, cache_dir, progress)
    known = _remembered(files)
    if files is not None and known is not None:
        return _known(files, known)
    net, model = open_in_torch(source, cache_dir, progress)
    graph = _trace(net, model.origin)
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    if files is not None and not model.notes and _covers(_plain_state(files), graph):
        cache.write(KIND, files.key, _to_text(files, graph, model.config).encode())
    return Network(graph, state, *model.preprocessing.scale_shift(), model.digest), model


def open_in_torch(
    source: str, cache_dir: str | None = None, progress: Progress = NO_PROGRESS
) -> tuple[DLA, TracedModel]:
    """The network in PyTorch, in evaluation mode.

    Raises:
        UsageError, UnknownNameError, UnavailableError, DamagedError: as `open_traced`.
    """
    from dla.weights.load import load_model

    opened = load_model(source, cache_dir=cache_dir, progress=progress)
    config = opened.config
    if config.in_chans != 3:
        raise UsageError(f"{opened.origin} takes {config.in_chans} channels, photos have 3. Try: dla.create_model")
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    found = resolve_source(source)
    folder = Path(found.where) if found.kind == "folder" else None
    return opened.model.eval(), TracedModel(
        config, preprocessing, opened.origin, opened.digest, opened.report.notes, folder
    )


def shipped_ops(source: str) -> str:
    """What `OPS` has to hold beside the weights of `source`."""
    files = _files(source, None, NO_PROGRESS)
    assert files is not None
    net, model = open_in_torch(source)
    return _to_text(files, _trace(net, model.origin), model.config)


def _files(source: str, cache_dir: str | None, progress: Progress) -> _Files | None:
    """The files that `source` names; None where only PyTorch reads them, or says what is wrong with them."""
    found = resolve_source(source)
    if found.kind == "hub":
        from dla.weights import hub

        fetched = hub.fetch(found.where, found.revision, cache_dir=cache_dir, progress=progress)
        if not fetched.weights_path.name.endswith(SAFE):
            return None
        return _Files(f"{fetched.repo}@{fetched.commit}", fetched.config, fetched.weights)
    folder = Path(found.where)
    if found.kind == "file" or not (folder / WEIGHTS).is_file():
        return None
    try:
        config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
    except OSError:
        return None
    return _Files(found.name or found.where, config, weights, folder, folder / OPS if found.name else None)


def _remembered(files: _Files | None) -> str | None:
    """What was found in the same files before."""
    if files is None:
        return None
    if files.ops is not None and files.ops.is_file():
        text = files.ops.read_text(encoding="utf-8")
        if json.loads(text)["key"] == files.key:
            return text
    data = cache.read(KIND, files.key)
    return None if data is None else data.decode()


def _known(files: _Files, text: str) -> tuple[Network, TracedModel]:
    root = json.loads(text)
    config = parse_config(json.dumps(root["config"]).encode(), f"the config of {files.origin}")
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    graph = OpGraph.from_json(root["graph"])
    network = Network(graph, _plain_state(files), *preprocessing.scale_shift(), files.digest)
    return network, TracedModel(config, preprocessing, files.origin, files.digest, folder=files.folder)


def _to_text(files: _Files, graph: OpGraph, config: ModelConfig) -> str:
    root = {"key": files.key, "config": json.loads(config.to_json()), "graph": graph.to_json()}
    return json.dumps(root, ensure_ascii=False, sort_keys=True, indent=1) + "\n"


def _trace(net: DLA, origin: str) -> OpGraph:
    from dla.engines.tracing import trace_ops

    try:
        return trace_ops(net)
    except NotImplementedError as error:
        raise OnlyTorchError(f"{origin} has a part that only PyTorch runs ({error}). Try --engine torch") from error


def _plain_state(files: _Files) -> dict[str, Array]:
    """The file's tensors; none where NumPy has no such numbers (bfloat16)."""
    from safetensors.numpy import load

    try:
        return load(files.weights)
    except (KeyError, TypeError, ValueError):
        return {}


def _covers(state: dict[str, Array], graph: OpGraph) -> bool:
    """Whether the tensors stand in the file under the network's own names."""
    layers = (op.attributes["layer"] for op in graph.ops if op.op_type == "conv")
    return all(f"{layer}.weight" in state for layer in layers)
