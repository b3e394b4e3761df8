"""List the networks and describe one with its weights. Never connects to the hub.

`models` loads no torch, so listing is instant; `info` imports it when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dla.errors import UnavailableError
from dla.models import flops
from dla.models.registry import TABLE, Row
from dla.types import DEFAULT_MODEL
from dla.weights import hub
from dla.weights.model_folder import WEIGHTS, ModelConfig, read_config
from dla.weights.shards import stored_bytes
from dla.weights.spec import ModelSource, guesses, open_files, read_header, shipped, shipped_names

if TYPE_CHECKING:
    from dla.inference.classifier import Classifier
    from dla.inference.dense_model import DenseModel
    from dla.inference.open_engine import EngineChoice
    from dla.models.dense import Dense
    from dla.models.dla import DLA
    from dla.weights.load import LoadedModel

MODELS_SCHEMA = "dla.models/1"
INFO_SCHEMA = "dla.info/1"


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Where a network's weights are, and their size.

    `state`: "shipped" in the package, "cached" from the hub, "here" in a file of the user's, "to download", or "none"
    if none were released. `size_bytes` is the file's size, or, if `estimated`, 4 bytes per parameter.
    """

    state: Literal["shipped", "cached", "here", "to download", "none"]
    size_bytes: int | None = None
    estimated: bool = False
    path: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A summary of one network with its weights; without weights, of the network with 1000 classes.

    `model` is the name for `--model` and `dla.load`. `macs` are multiply-accumulates for one image of `input_size`
    (channels, height, width). `top1` is in per cent: the published accuracy on ImageNet-1k, or, for a shipped network,
    the accuracy on the validation photos of its own data set.
    """

    model: str
    architecture: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    top1: float | None
    num_classes: int | None
    license: str | None
    weights: StoredWeights

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        return {"schema": MODELS_SCHEMA, **asdict(self)}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Everything known about one network with its weights.

    `model`, `params`, `macs` and `input_size` are as in `ModelRow`. `origin` is what was read (owner/name@commit,
    shipped:name or a path), None if the weights are not on this machine; `homepage` is where they were first published.
    `classes` are (class_id, label) in output order. `published` holds the accuracies on ImageNet-1k in per cent,
    `results` and `recipe` the records of the training. `temperature` divides the logits, if the config has one.
    `sha256` is the hash of the weight file, `notes` are remarks about it. `nodes` are the aggregation nodes and
    `engines` the timings of the engines, if requested.
    """

    model: str
    architecture: str
    task: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    weights: StoredWeights
    sha256: str | None
    origin: str | None
    homepage: str | None
    license: str | None
    restrictions: str | None
    dataset: str | None
    num_classes: int
    classes: tuple[tuple[str, str], ...]
    preprocessing: Mapping[str, Any] | None
    temperature: float | None
    published: Mapping[str, float] | None
    results: Mapping[str, Any] | None
    recipe: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    nodes: tuple[Mapping[str, Any], ...] | None = None
    engines: EngineChoice | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        record = {"schema": INFO_SCHEMA, **asdict(self)}
        record["classes"] = [{"class_id": class_id, "label": label} for class_id, label in self.classes]
        for optional in ("nodes", "engines"):
            if record[optional] is None:
                del record[optional]
        return record


T = TypeVar("T")

_NO_LICENCE = "No licence is stated for these weights: ask their authors before using them for more than a look."


def info(source: str = DEFAULT_MODEL, *, nodes: bool = False, engines: bool = False) -> ModelInfo:
    """Describe a network, from its files if they are on this machine, else from the table of networks.

    Weights on this machine are loaded strictly, so that the description matches what would run.

    Args:
        source: as in `dla.load`, or a network without released weights.
        nodes: also list every aggregation node.
        engines: also time every engine with the network, which takes a few seconds and needs its weights.

    Raises:
        UnknownNameError: no network or file is called `source`.
        UnavailableError: it is neither on this machine nor in the table.
        DamagedError: the weights are damaged or do not fit the network.
    """
    if source in TABLE and TABLE[source].tag is None and not engines:
        return _not_here(TABLE[source], nodes)
    files = open_files(source)
    parsed, r = files.source, _row_of(files.source)
    if parsed.kind != "hub" or hub.locate(parsed.where, parsed.revision):
        from dla.inference.open_engine import time_engines
        from dla.weights.load import load_any

        known = info_of(load_any(files), nodes=nodes)
        return replace(known, engines=time_engines(files)) if engines else known
    if r is None:
        raise UnavailableError(
            f"{parsed.where} is not in the cache ({hub.cache_folder()}), so nothing is known about it yet. "
            f"Try: dla pull {source}"
        )
    if engines:
        raise UnavailableError(
            f"timing the engines needs the weights of {source}, which are not downloaded. Try: dla pull {source}"
        )
    return _not_here(r, nodes)


def _row_of(source: ModelSource) -> Row | None:
    """Return the table's row of these released weights, or None."""
    return next((r for r in TABLE.values() if r.hub_id == source.where), None) if source.kind == "hub" else None


def _not_here(r: Row, nodes: bool) -> ModelInfo:
    import torch

    from dla.models.build import build

    with torch.device("meta"):
        model = build(r.name)
    config = ModelConfig(r.name, model.num_classes, pretrained_cfg=r.pretrained_cfg().to_dict())
    return _info(r.tagged_name, _shapes(model), config, r, stored_of_row(r), nodes)


def info_of(loaded: LoadedModel[Any], *, nodes: bool = False) -> ModelInfo:
    """Describe a model that is already loaded; `nodes` as in `info`."""
    source, r = loaded.source, _row_of(loaded.source)
    path = os.path.abspath(loaded.weights_path)
    size = stored_bytes(loaded.weights_path)
    if source.kind == "hub":
        weights = StoredWeights("cached", size, path=path)
        revision = f"@{source.revision}" if source.revision else ""
        name = f"hf-hub:{source.where}{revision}" if r is None or revision else r.tagged_name
    else:
        weights = StoredWeights("shipped" if source.name else "here", size, path=path)
        name = source.name or os.path.abspath(source.where)
    found = _ReadWeights(loaded.digest, loaded.origin, _notes(loaded.source, loaded.config, loaded.report.notes))
    return _info(name, _shapes(loaded.model), loaded.config, r, weights, nodes, found)


def info_of_network(source: str, network: Classifier | DenseModel) -> ModelInfo:
    """Describe an opened network, without PyTorch unless its engine is PyTorch; its paths are left out."""
    from dla.engines.base import NetworkEngine

    engine = network.engine
    if isinstance(engine, NetworkEngine):
        parsed = open_files(source).source
        shapes = {name: tuple(values.shape) for name, values in engine.network.state.items()}
        found = _ReadWeights(network.sha256, None, _notes(parsed, network.config, network.notes))
        state: Literal["cached", "shipped", "here"] = (
            "cached" if parsed.kind == "hub" else "shipped" if parsed.name else "here"
        )
        known = _info(source, shapes, network.config, _row_of(parsed), StoredWeights(state), False, found)
    else:
        known = info(source)
    return replace(known, origin=None, weights=replace(known.weights, path=None))


@dataclass(frozen=True, slots=True)
class _ReadWeights:
    """What reading the weights has told."""

    sha256: str
    origin: str | None
    notes: tuple[str, ...]


def _shapes(model: DLA | Dense) -> flops.LayerShapes:
    from dla.weights.keys import shapes_of

    return shapes_of(model.state_dict())


def _info(
    name: str,
    shapes: flops.LayerShapes,
    config: ModelConfig,
    r: Row | None,
    weights: StoredWeights,
    nodes: bool,
    found: _ReadWeights | None = None,
) -> ModelInfo:
    """Build the description; `r` is the table's row of the released weights, or None."""
    from dla.inference.classifier import class_names

    cfg, dla_config = config.pretrained_cfg, config.dla
    height, width = config.photo_size
    license_ = _if(str, dla_config.get("license")) or (r.license if r else _if(str, cfg.get("license"))) or None
    has_weights = weights.state != "none"
    return ModelInfo(
        model=name,
        architecture=config.architecture,
        task=_if(str, dla_config.get("task")) or "classify",
        params=flops.parameters(shapes),
        macs=flops.macs(shapes, (height, width), config.model_args.get("output_stride", 32)),
        input_size=(config.in_chans, height, width),
        weights=weights,
        sha256=found.sha256 if found else None,
        origin=found.origin if found else None,
        homepage=(r.origin if r else _if(str, cfg.get("origin_url"))) or None,
        license=license_,
        restrictions=_NO_LICENCE if license_ == "unknown" else None,
        dataset=_if(str, dla_config.get("dataset")) or ("ImageNet-1k" if r and has_weights else None),
        num_classes=config.num_classes,
        classes=tuple((c.class_id, c.label) for c in class_names(config)) if has_weights else (),
        preprocessing=_preprocessing(config) if has_weights else None,
        temperature=config.temperature if "temperature" in dla_config else None,
        published={"top1": r.top1, "top5": r.top5} if r and r.top1 and r.top5 else None,
        results=_if(dict, dla_config.get("results")),
        recipe=_if(dict, dla_config.get("recipe")),
        notes=found.notes if found else (),
        nodes=_nodes(config) if nodes else None,
    )


def _nodes(config: ModelConfig) -> tuple[Mapping[str, Any], ...]:
    """Return every aggregation node of the network, or of its backbone."""
    import torch

    from dla.models.build import build
    from dla.models.nodes import nodes

    with torch.device("meta"):
        model = build(config.architecture, num_classes=0, **config.model_args)
    return tuple(asdict(node) for node in nodes(model))


def _notes(source: ModelSource, config: ModelConfig, notes: tuple[str, ...]) -> tuple[str, ...]:
    stride = config.model_args.get("output_stride", 32)
    strided = "" if stride == 32 else f"output stride {stride} instead of 32, which timm cannot read"
    return notes + tuple(filter(None, (guesses(source, config), strided)))


def _preprocessing(config: ModelConfig) -> dict[str, Any] | None:
    """Return the network's preprocessing of photos; None if it does not take 3 channels."""
    if config.in_chans != 3:
        return None
    from dla.images.preprocessing import Preprocessing

    known = {**Preprocessing.from_config(config.pretrained_cfg, config.exif).to_config(), "exif": config.exif}
    return known if config.task == "classify" else {**known, "short_side": config.dla.get("short_side")}


def _if(kind: type[T], value: Any) -> T | None:
    """Return a value of a config, which others may have written, if it has the expected type, else None."""
    return value if isinstance(value, kind) else None


_BYTES_PER_PARAMETER = 4  # released weights are float32


def models() -> tuple[ModelRow, ...]:
    """Return the networks of the table in its order, then the shipped ones."""
    return tuple(map(_of_row, TABLE.values())) + tuple(map(_of_shipped, shipped_names()))


def stored_of_row(r: Row) -> StoredWeights:
    """Return where the released weights of a network are."""
    if r.hub_id is None:
        return StoredWeights("none")
    path = hub.locate(r.hub_id)
    if path is None:
        return StoredWeights("to download", _BYTES_PER_PARAMETER * r.params, estimated=True)
    return StoredWeights("cached", path.stat().st_size, path=str(path))


def _of_row(r: Row) -> ModelRow:
    return ModelRow(
        model=r.name,
        architecture=r.name,
        params=r.params,
        macs=r.macs,
        input_size=(3, 224, 224),
        top1=r.top1,
        num_classes=1000 if r.tag else None,
        license=r.license or None,
        weights=stored_of_row(r),
    )


def _of_shipped(name: str) -> ModelRow:
    folder = shipped(name)
    config = read_config(folder)
    path = folder / WEIGHTS
    with path.open("rb") as file:
        shapes = {name: shape for name, (_, shape) in read_header(file).items()}
    height, width = config.photo_size
    top1 = config.dla.get("results", {}).get("top1")
    return ModelRow(
        model=f"shipped:{name}",
        architecture=config.architecture,
        params=flops.parameters(shapes),
        macs=flops.macs(shapes, (height, width)),
        input_size=(config.in_chans, height, width),
        top1=None if top1 is None else round(100 * top1, 2),
        num_classes=config.num_classes,
        license=config.dla.get("license"),
        weights=StoredWeights("shipped", path.stat().st_size, path=str(path)),
    )
