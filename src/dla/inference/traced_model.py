"""Open a model's files as a `Network` for any engine, without torch if the same files were opened before.

PyTorch loads the weights strictly once. The network's operations and config are then cached under the SHA-256 of the
files. Built-in networks have theirs in their package folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla.engines.graph import Network, OpGraph
from dla.errors import DamagedError, OnlyTorchError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.storage import cache
from dla.storage.files import JsonObject, parse_object, read_json
from dla.weights.model_folder import ModelConfig
from dla.weights.spec import SAFE, ModelFiles, open_files, read_header, warn_of_guesses

if TYPE_CHECKING:
    from torch import nn

    from dla.weights.load import LoadedModel, N

OPS = "ops.json"  # in the folder of a built-in network
KIND, FORMAT = "ops", "1"
_PLAIN = ("F64", "F32", "F16", "I64", "I32", "I16", "I8", "U8", "BOOL")  # types that NumPy has too


@dataclass(frozen=True, slots=True)
class TracedModel:
    """What is known about a network for photos besides its operations and weights.

    `origin` is what was read, `digest` the SHA-256 of its weight file, `folder` the local model folder, if it is one.
    """

    config: ModelConfig
    preprocessing: Preprocessing
    origin: str
    digest: str
    notes: tuple[str, ...] = ()
    folder: Path | None = None


def open_traced(
    source: str | ModelFiles, cache_dir: str | None = None, loaded: LoadedModel[Any] | None = None
) -> tuple[Network, TracedModel]:
    """Open the network that `source` names for any engine.

    `loaded` is the same model, if PyTorch has loaded it already.

    Raises:
        UsageError: the network does not take 3 channels.
        OnlyTorchError: it has parts that only PyTorch runs.
        UnknownNameError, UnavailableError, DamagedError: as `dla.load`.
    """
    files = open_files(source, cache_dir)
    cached = _read_cached(files)
    if cached is not None:
        return _from_cached(files, *cached)
    net, model = for_photos(loaded or _load(files))
    graph = _trace(net, model.origin)
    if model.notes == files.notes and _covers(files, graph):
        cache.write(KIND, _key(files), _to_text(files, graph, model.config).encode())
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    return Network(graph, state, *model.preprocessing.scale_shift(), model.digest), model


def open_in_torch(source: str | ModelFiles, cache_dir: str | None = None) -> tuple[nn.Module, TracedModel]:
    """Open the network that `source` names in PyTorch, in evaluation mode.

    Raises:
        UsageError, UnknownNameError, UnavailableError, DamagedError: as `open_traced`.
    """
    return for_photos(_load(open_files(source, cache_dir)))


def for_photos(loaded: LoadedModel[N]) -> tuple[N, TracedModel]:
    """Return a loaded network in evaluation mode, with its preprocessing and config.

    Raises:
        UsageError: it does not take 3 channels.
    """
    config = loaded.config
    if config.in_chans != 3:
        raise UsageError(f"{loaded.origin} takes {config.in_chans} channels, photos have 3. Try: dla.create_model")
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    warn_of_guesses(loaded.source, config)
    folder = Path(loaded.source.where) if loaded.source.kind == "folder" else None
    return loaded.model.eval(), TracedModel(
        config, preprocessing, loaded.origin, loaded.digest, loaded.report.notes, folder
    )


def shipped_ops(source: str) -> str:
    """Return the text of the file `OPS` for the weights of `source`."""
    files = open_files(source)
    net, model = open_in_torch(files)
    return _to_text(files, _trace(net, model.origin), model.config)


def _load(files: ModelFiles) -> LoadedModel[Any]:
    from dla.weights.load import load_any  # imports torch

    return load_any(files)


def _key(files: ModelFiles) -> str:
    config = hashlib.sha256(files.config_bytes or b"").hexdigest()  # before the weights: it fails first if absent
    return cache.key_of(FORMAT, files.sha256, config)


def _read_cached(files: ModelFiles) -> tuple[ModelConfig, OpGraph] | None:
    """Return the cached config and operations of the same files; None if there are none, or only PyTorch reads them."""
    key = _key(files)
    if not _is_safe(files):
        return None
    if files.source.name and files.folder is not None and (files.folder / OPS).is_file():  # a built-in network
        root = read_json(files.folder / OPS)
        if root.get("key") == key:
            return _parsed(root, files)
    data = cache.read(KIND, key)
    try:
        return None if data is None else _parsed(parse_object(data, f"{KIND}/{key}"), files)
    except DamagedError:
        return None  # they are traced again


def _parsed(root: dict[str, Any], files: ModelFiles) -> tuple[ModelConfig, OpGraph]:
    saved = JsonObject(root, OPS)
    config = ModelConfig.from_mapping(saved.get("config", dict, "an object"), f"the config of {files.origin}")
    return config, OpGraph.from_json(saved.get("graph", str, "a text"))


def _is_safe(files: ModelFiles) -> bool:
    return files.weights_name.lower().endswith(SAFE)


def _from_cached(files: ModelFiles, config: ModelConfig, graph: OpGraph) -> tuple[Network, TracedModel]:
    files.check_architecture(config)
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    warn_of_guesses(files.source, config)
    from safetensors.numpy import load

    network = Network(graph, load(files.weights), *preprocessing.scale_shift(), files.sha256)
    return network, TracedModel(config, preprocessing, files.origin, files.sha256, files.notes, files.folder)


def _to_text(files: ModelFiles, graph: OpGraph, config: ModelConfig) -> str:
    root = {"key": _key(files), "config": json.loads(config.to_json()), "graph": graph.to_json()}
    return json.dumps(root, ensure_ascii=False, sort_keys=True, indent=1) + "\n"


def _trace(net: nn.Module, origin: str) -> OpGraph:
    from dla.engines.tracing import trace_ops

    try:
        return trace_ops(net)
    except NotImplementedError as error:
        raise OnlyTorchError(f"{origin} has a part that only PyTorch runs ({error}). Try --engine torch") from error


def _covers(files: ModelFiles, graph: OpGraph) -> bool:
    """Return whether NumPy can read the weight file and its tensors have the network's own names."""
    if not _is_safe(files):
        return False
    tensors = read_header(io.BytesIO(files.weights))
    layers = (op.attributes["layer"] for op in graph.ops if "layer" in op.attributes)
    plain = all(dtype in _PLAIN for dtype, _ in tensors.values())
    return plain and all(f"{layer}.weight" in tensors for layer in layers)
