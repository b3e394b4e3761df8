"""Everything there is to know about one network with its weights. The hub is never asked.

`models` loads no torch, so that listing is instant; what describes one network imports it when it is called.
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
from dla.weights.spec import ModelSource, open_files, read_header, shipped, shipped_names

if TYPE_CHECKING:
    from dla.inference.open_engine import EngineChoice
    from dla.models.dla import DLA
    from dla.weights.load import LoadedModel

__all__ = [
    "INFO_SCHEMA",
    "MODELS_SCHEMA",
    "ModelInfo",
    "ModelRow",
    "StoredWeights",
    "info",
    "info_of",
    "models",
    "stored_of_row",
]


MODELS_SCHEMA = "dla.models/1"
INFO_SCHEMA = "dla.info/1"


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Where a network's weights are, and how large.

    `state`: "shipped" inside the package, "cached" from the hub, "here" in a file of the user's, "to download", or
    "none" where nobody released any. `size_bytes` is the file's size, or, where `estimated`, 4 bytes a parameter.
    """

    state: Literal["shipped", "cached", "here", "to download", "none"]
    size_bytes: int | None = None
    estimated: bool = False
    path: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One network with its weights, in short; where there are no weights, with a classifier of 1000 classes.

    `model` is what `--model` and `dla.load` take. `macs` are multiplications for one image of `input_size` (channels,
    height, width). `top1` is in per cent: the published accuracy on ImageNet-1k, of a shipped network that on the
    validation photos of its own data set.
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
    """Everything there is to know about one network with its weights.

    `model`, `params`, `macs` and `input_size` are as in `ModelRow`. `origin` is what was read (owner/name@commit,
    shipped:name or a path) and None where the weights are not here; `homepage` is where they were first published.
    `classes` are (class_id, label) in the order of the outputs. `published` are per cent on ImageNet-1k, `results`
    and `recipe` what the training wrote down. `temperature` is what the scores are divided by, where the folder says
    one. `sha256` is the weight file's, `notes` what there is to say about it.
    `nodes` are the aggregation nodes, `engines` how fast which engine is here, where they were asked for.
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
        for asked_for in ("nodes", "engines"):
            if record[asked_for] is None:
                del record[asked_for]
        return record


T = TypeVar("T")

_NO_LICENCE = "Nobody states a licence for these weights: ask their authors before using them for more than a look."


def info(source: str = DEFAULT_MODEL, *, nodes: bool = False, engines: bool = False) -> ModelInfo:
    """What is known about a network: from its files where they are here, else from the table of networks.

    Weights that are here are loaded, strictly, so that what is told is what would run.

    Args:
        source: as in `dla.load`, or a network without released weights.
        nodes: also list every aggregation node.
        engines: also time every engine with it, which takes a few seconds. Its weights have to be here.

    Raises:
        UnknownNameError: no network or file is called `source`.
        UnavailableError: it is neither here nor in the table.
        DamagedError: the weights are not what they should be.
    """
    from dla.weights.load import load_model

    if source in TABLE and TABLE[source].tag is None and not engines:
        return _not_here(TABLE[source], nodes)
    files = open_files(source)
    found, r = files.source, _row_of(files.source)
    if found.kind != "hub" or hub.locate(found.where, found.revision):
        from dla.inference.open_engine import time_engines
        from dla.weights.load import load_model

        known = info_of(load_model(files), nodes=nodes)
        return replace(known, engines=time_engines(files)) if engines else known
    if r is None:
        raise UnavailableError(
            f"{found.where} is not in the cache ({hub.cache_folder()}), so nothing is known about it yet. "
            f"Try: dla pull {source}"
        )
    if engines:
        raise UnavailableError(
            f"engines are timed with weights that are here, and those of {source} are not. Try: dla pull {source}"
        )
    return _not_here(r, nodes)


def _row_of(source: ModelSource) -> Row | None:
    """The row whose released weights these are, if they are any's."""
    return next((r for r in TABLE.values() if r.hub_id == source.where), None) if source.kind == "hub" else None


def _not_here(r: Row, nodes: bool) -> ModelInfo:
    import torch

    from dla.models.build import build

    with torch.device("meta"):
        model = build(r.name)
    config = ModelConfig(r.name, model.num_classes, pretrained_cfg=r.pretrained_cfg())
    name = f"{r.name}.{r.tag}" if r.tag else r.name
    return _info(name, model, config, r, stored_of_row(r), nodes)


def info_of(opened: LoadedModel, *, nodes: bool = False) -> ModelInfo:
    """The same of a model that is loaded already."""
    found, r = opened.source, _row_of(opened.source)
    path = os.path.abspath(opened.weights_path)
    size = os.path.getsize(path)
    if found.kind == "hub":
        weights = StoredWeights("cached", size, path=path)
        revision = f"@{found.revision}" if found.revision else ""
        name = f"hf-hub:{found.where}{revision}" if r is None or revision else f"{r.name}.{r.tag}"
    else:
        weights = StoredWeights("shipped" if found.name else "here", size, path=path)
        name = found.name or os.path.abspath(found.where)
    return _info(name, opened.model, opened.config, r, weights, nodes, opened)


def _info(
    name: str,
    model: DLA,
    config: ModelConfig,
    r: Row | None,
    weights: StoredWeights,
    nodes: bool,
    opened: LoadedModel | None = None,
) -> ModelInfo:
    """`r` is the row whose released weights these are, if they are any's."""
    from dla.inference.classifier import class_names
    from dla.models.nodes import nodes as feature_nodes
    from dla.weights.keys import shapes_of

    cfg, said = config.pretrained_cfg, config.dla
    _, height, width = cfg.get("input_size") or (3, 224, 224)
    license_ = _if(str, said.get("license")) or (r.license if r else _if(str, cfg.get("license"))) or None
    has_weights = weights.state != "none"
    return ModelInfo(
        model=name,
        architecture=config.architecture,
        task=_if(str, said.get("task")) or "classify",
        params=sum(p.numel() for p in model.parameters()),
        macs=flops.macs(shapes_of(model.state_dict()), (height, width), config.model_args.get("output_stride", 32)),
        input_size=(config.in_chans, height, width),
        weights=weights,
        sha256=opened.digest if opened else None,
        origin=opened.origin if opened else None,
        homepage=(r.origin if r else _if(str, cfg.get("origin_url"))) or None,
        license=license_,
        restrictions=_NO_LICENCE if license_ == "unknown" else None,
        dataset=_if(str, said.get("dataset")) or ("ImageNet-1k" if r and has_weights else None),
        num_classes=config.num_classes,
        classes=tuple((c.class_id, c.label) for c in class_names(config)) if has_weights else (),
        preprocessing=_preprocessing(config) if has_weights else None,
        temperature=config.temperature if "temperature" in said else None,
        published={"top1": r.top1, "top5": r.top5} if r and r.top1 and r.top5 else None,
        results=_if(dict, said.get("results")),
        recipe=_if(dict, said.get("recipe")),
        notes=opened.report.notes if opened else (),
        nodes=tuple(asdict(node) for node in feature_nodes(model)) if nodes else None,
    )


def _preprocessing(config: ModelConfig) -> dict[str, Any] | None:
    """As photos are prepared for the network; None where it does not take photos."""
    if config.in_chans != 3:
        return None
    from dla.images.preprocessing import Preprocessing

    return {**Preprocessing.from_config(config.pretrained_cfg, config.exif).to_config(), "exif": config.exif}


def _if(kind: type[T], value: Any) -> T | None:
    """What somebody else's config says, if it is of the kind that it should be."""
    return value if isinstance(value, kind) else None


_BYTES_A_PARAMETER = 4  # released weights are float32


def models() -> tuple[ModelRow, ...]:
    """The networks of the table in its order, then the ones that come along."""
    return tuple(map(_of_row, TABLE.values())) + tuple(map(_of_shipped, shipped_names()))


def stored_of_row(r: Row) -> StoredWeights:
    """Where the released weights of a network are."""
    if r.hub_id is None:
        return StoredWeights("none")
    path = hub.locate(r.hub_id)
    if path is None:
        return StoredWeights("to download", _BYTES_A_PARAMETER * r.params, estimated=True)
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
    channels, height, width = config.pretrained_cfg["input_size"]
    top1 = config.dla.get("results", {}).get("top1")
    return ModelRow(
        model=f"shipped:{name}",
        architecture=config.architecture,
        params=flops.parameters(shapes),
        macs=flops.macs(shapes, (height, width)),
        input_size=(channels, height, width),
        top1=None if top1 is None else round(100 * top1, 2),
        num_classes=config.num_classes,
        license=config.dla.get("license"),
        weights=StoredWeights("shipped", path.stat().st_size, path=str(path)),
    )
