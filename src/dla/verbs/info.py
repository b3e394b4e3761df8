"""Everything there is to know about one network with its weights. The hub is never asked."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch

from dla.errors import UnavailableError
from dla.images.prepare import Preprocessing
from dla.nets import count, taps
from dla.nets.backbone import DLA
from dla.nets.build import build
from dla.nets.table import DEFAULT_MODEL, TABLE, Row
from dla.records import ModelInfo, StoredWeights
from dla.verbs.engine import time_engines
from dla.verbs.models import stored_of_row
from dla.verbs.predict import class_names
from dla.weights import hub
from dla.weights.folder import ModelConfig
from dla.weights.load import Opened, open_model
from dla.weights.match import shapes_of
from dla.weights.sources import Source, find_source

__all__ = ["info"]

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
    if source in TABLE and TABLE[source].tag is None and not engines:
        return _not_here(TABLE[source], nodes)
    found = find_source(source)
    r = next((r for r in TABLE.values() if r.hub_id == found.where), None) if found.kind == "hub" else None
    if found.kind != "hub" or hub.locate(found.where, found.revision):
        known = _here(open_model(source), found, r, nodes)
        return replace(known, engines=time_engines(source)) if engines else known
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


def _not_here(r: Row, nodes: bool) -> ModelInfo:
    with torch.device("meta"):
        model = build(r.name)
    config = ModelConfig(r.name, model.num_classes, pretrained_cfg=r.pretrained_cfg())
    name = f"{r.name}.{r.tag}" if r.tag else r.name
    return _info(name, model, config, r, stored_of_row(r), nodes)


def _here(opened: Opened, found: Source, r: Row | None, nodes: bool) -> ModelInfo:
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
    opened: Opened | None = None,
) -> ModelInfo:
    """`r` is the row whose released weights these are, if they are any's."""
    cfg, said = config.pretrained_cfg, config.dla
    _, height, width = cfg.get("input_size") or (3, 224, 224)
    licence = _if(str, said.get("licence")) or (r.licence if r else _if(str, cfg.get("license"))) or None
    has_weights = weights.state != "none"
    return ModelInfo(
        model=name,
        architecture=config.architecture,
        task=_if(str, said.get("task")) or "classify",
        params=sum(p.numel() for p in model.parameters()),
        macs=count.macs(shapes_of(model.state_dict()), (height, width), config.model_args.get("output_stride", 32)),
        input_size=(config.in_chans, height, width),
        weights=weights,
        sha256=opened.digest if opened else None,
        origin=opened.origin if opened else None,
        homepage=(r.origin if r else _if(str, cfg.get("origin_url"))) or None,
        licence=licence,
        restrictions=_NO_LICENCE if licence == "unknown" else None,
        dataset=_if(str, said.get("dataset")) or ("ImageNet-1k" if r and has_weights else None),
        num_classes=config.num_classes,
        classes=tuple((c.class_id, c.label) for c in class_names(config)) if has_weights else (),
        preprocessing=_preprocessing(config) if has_weights else None,
        temperature=config.temperature if "temperature" in said else None,
        published={"top1": r.top1, "top5": r.top5} if r and r.top1 and r.top5 else None,
        results=_if(dict, said.get("results")),
        recipe=_if(dict, said.get("recipe")),
        notes=opened.report.notes if opened else (),
        nodes=tuple(asdict(node) for node in taps.nodes(model)) if nodes else None,
    )


def _preprocessing(config: ModelConfig) -> dict[str, Any] | None:
    """As photos are prepared for the network; None where it does not take photos."""
    if config.in_chans != 3:
        return None
    return {**Preprocessing.from_config(config.pretrained_cfg, config.exif).to_config(), "exif": config.exif}


def _if(kind: type[T], value: Any) -> T | None:
    """What somebody else's config says, if it is of the kind that it should be."""
    return value if isinstance(value, kind) else None
