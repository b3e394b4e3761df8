"""The config of a model's files; of a bare weight file the one that its tensors show."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dla.errors import UsageError
from dla.models.registry import row
from dla.weights import hub
from dla.weights.keys import (
    BASE,
    DENSE_HEAD,
    FIRST_CONV,
    HEAD,
    candidate_networks,
    dense_layout,
    is_dense,
    plain_names,
    shapes_of,
)
from dla.weights.model_folder import CONFIG, ModelConfig, parse_config
from dla.weights.spec import ModelFiles
from dla.weights.state_files import WeightFile, parse_weights

# The fields of the table's preprocessing, for sources that specify none.
PREPROCESSING = (
    "input_size", "pool_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "fixed_input_size",
    "first_conv", "classifier",
)  # fmt: skip


def task_of(files: ModelFiles) -> str:
    """Return the task of a model: "classify", "segment" or "edges"; of a bare file, by the names of its tensors."""
    if files.config is not None:
        return files.config.task
    shapes = shapes_of(plain_names(_weights(files).state))
    if not is_dense(shapes):
        return "classify"
    return "edges" if shapes.get(f"{DENSE_HEAD}weight", (0,))[0] == 1 else "segment"


def _weights(files: ModelFiles) -> WeightFile:
    return parse_weights(files.weights, files.weights_name, files.weights_title, files.sha256)


def parsed(files: ModelFiles, architecture: str | None) -> tuple[ModelConfig, WeightFile]:
    """Return the config and the weights in files; without a config, the one that the weights show."""
    weights = _weights(files)
    config = files.config or _config_of(weights.state, files.origin, architecture)
    files.check_architecture(config, architecture)
    return config, dataclasses.replace(weights, notes=files.choice_notes + weights.notes)


def config_alone(files: ModelFiles, cache_dir: str | os.PathLike[str] | None) -> ModelConfig:
    """Return the config of a model without fetching its weights."""
    resolved = files.source
    if resolved.kind == "hub":
        where = f"{CONFIG} of {resolved.where}"
        return parse_config(hub.fetch_config(resolved.where, resolved.revision, cache_dir=cache_dir), where)
    return files.config or _config_of(_weights(files).state, resolved.where, None)


def _config_of(state: Mapping[str, Tensor], where: str, architecture: str | None) -> ModelConfig:
    """Return a config for a bare file, inferred from its tensors."""
    shapes = whole = shapes_of(plain_names(state))
    head, dense = HEAD, dict[str, Any]()
    if is_dense(whole):
        shapes = {name.removeprefix(BASE): shape for name, shape in whole.items() if name.startswith(BASE)}
        head, dense = DENSE_HEAD, dense_layout(whole)
    if architecture is None:
        fits = candidate_networks(shapes)
        if len(fits) != 1:
            match = f"fits several networks ({', '.join(fits)})" if fits else "fits no network of the table exactly"
            raise UsageError(f"{where} {match}. Try: name the architecture, such as dla60.")
        architecture = fits[0]
    cfg = row(architecture).pretrained_cfg().to_dict()
    in_chans = shapes.get(FIRST_CONV, (0, 3))[1]
    num_classes = whole.get(f"{head}weight", (0,))[0]
    if dense:
        dense["task"] = "edges" if num_classes == 1 else "segment"
    size = {"input_size": (in_chans, 224, 224)}
    cfg = {key: cfg[key] for key in PREPROCESSING} | size
    return ModelConfig(architecture, num_classes, pretrained_cfg=cfg, dla=dense)
