"""Load weights into networks, strictly: all tensors match by name and shape, or nothing is loaded.

There are two exceptions, both reported: the authors' unused projections are dropped, and the classifier is replaced on
request.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from dla.errors import DamagedError
from dla.models.build import build
from dla.models.dense import Dense
from dla.models.dla import DLA
from dla.models.registry import row
from dla.types import NO_PROGRESS, Progress
from dla.weights import keys
from dla.weights.identify import PREPROCESSING, config_alone, parsed, task_of
from dla.weights.model_folder import ModelConfig, check_task
from dla.weights.spec import ModelFiles, ModelSource, open_files
from dla.weights.state_files import WeightFile

# The fields of a config that hold after the classifier was replaced.
_OF_THE_BODY = ("task", "preprocessing", "license")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading changed: dropped projections, a new classifier, and notes about it for the user."""

    dropped: tuple[str, ...] = ()
    new_head: bool = False
    notes: tuple[str, ...] = ()


N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class LoadedModel(Generic[N]):
    """A network with its weights.

    `config` describes the network as built, `origin` what was loaded (owner/name@commit, shipped:name, or a path),
    `weights_path` is the weight file, `digest` its SHA-256, `source` what the model's name resolved to.
    """

    model: N
    config: ModelConfig
    origin: str
    report: LoadReport
    weights_path: Path
    digest: str
    source: ModelSource


def load_model(
    source: str | ModelFiles,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    architecture: str | None = None,
    new_head: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    overlay: Mapping[str, Any] | None = None,
    progress: Progress = NO_PROGRESS,
    **options: Any,
) -> LoadedModel[DLA]:
    """Build the classifier that `source` names, with its weights, in training mode.

    Args:
        source: a name (see `resolve_source`), or files that are open already, which are not read again.
        num_classes: if not the source's, replaces the classifier; 0 removes it.
        in_chans: if not the source's, adapts the first convolution.
        architecture: the network in a bare file (by default identified by tensor names and shapes), or the network
            that any other source is required to be.
        new_head: replace the classifier even if the number of classes is the same.
        cache_dir: the hub's cache, by default huggingface_hub's own.
        overlay: fields that override the source's `pretrained_cfg`, `num_classes` and `input_size` included.
        progress: receives the downloaded bytes.
        options: other options of the network, which override the source's config.

    Raises:
        UsageError: if there is no such source, a bare file fits several networks or none, or the network is of
            another task.
        UnavailableError: if the weights are unavailable.
        DamagedError: if the weights are damaged.
    """
    files = open_files(source, cache_dir, progress)
    origin = files.origin
    config, weights = parsed(files, architecture)
    check_task(config, origin, "classify")
    config = _overlaid(config, overlay)
    model, config, report = _assemble(config, weights, origin, num_classes, in_chans, new_head, options)
    return LoadedModel(model, config, origin, report, files.weights_path, files.sha256, files.source)


def load_dense(
    source: str | ModelFiles,
    *,
    architecture: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> LoadedModel[Dense]:
    """Build the segmentation or boundary network that `source` names, with its weights, in training mode.

    Arguments are those of `load_model`; `options` are of the backbone.

    Raises:
        UsageError: it is of another task.
        UnavailableError, DamagedError: as by `load_model`.
    """
    files = open_files(source, cache_dir)
    config, weights = parsed(files, architecture)
    check_task(config, files.origin, "segment", "edges")
    model = _build_dense(config, options)
    report = load_state(model, weights.state, where=files.origin)
    report = dataclasses.replace(report, notes=weights.notes + report.notes)
    return LoadedModel(model, config, files.origin, report, files.weights_path, files.sha256, files.source)


def load_any(
    source: str | ModelFiles,
    *,
    architecture: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> LoadedModel[DLA] | LoadedModel[Dense]:
    """Build the network that `source` names, of whatever task. Arguments and errors are those of `load_model`."""
    files = open_files(source, cache_dir)
    if task_of(files) == "classify":
        return load_model(files, architecture=architecture)
    return load_dense(files, architecture=architecture)


def _build_dense(config: ModelConfig, options: Mapping[str, Any]) -> Dense:
    """Build a dense network without weights."""
    with torch.device("meta"):
        backbone = build(config.architecture, **{**config.model_args, **options, "num_classes": 0})
        ratio, up = config.dla.get("down_ratio", 2), config.dla.get("up", "bilinear")
        model = Dense.over(backbone, config.num_classes, ratio, up)
    model.pretrained_cfg = _cfg_attribute(config)
    return model


def create_untrained(
    source: str | ModelFiles,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    overlay: Mapping[str, Any] | None = None,
    **options: Any,
) -> DLA:
    """Build the network that `source` describes with random weights; its own are neither loaded nor fetched.

    Arguments and errors are those of `load_model`.
    """
    config = _overlaid(config_alone(open_files(source, cache_dir), cache_dir), overlay)
    stored = {**config.model_args, "num_classes": config.num_classes, "in_chans": config.in_chans}
    model = build(config.architecture, **stored | options)
    model.pretrained_cfg = model.default_cfg = _cfg_attribute(config)
    return model


def skeleton(source: str | ModelFiles) -> DLA | Dense:
    """Build the network that `source` names, of whatever task, without its weights, which are not fetched.

    Errors are those of `load_model`.
    """
    files = open_files(source)
    config = config_alone(files, None)
    return create_untrained(files) if config.task == "classify" else _build_dense(config, {})


def _overlaid(config: ModelConfig, overlay: Mapping[str, Any] | None) -> ModelConfig:
    if not overlay:
        return config
    classes = overlay.get("num_classes", config.num_classes)
    return dataclasses.replace(config, num_classes=classes, pretrained_cfg={**config.pretrained_cfg, **overlay})


def _assemble(
    config: ModelConfig,
    weights: WeightFile,
    origin: str,
    num_classes: int | None,
    in_chans: int | None,
    new_head: bool,
    options: Mapping[str, Any],
) -> tuple[DLA, ModelConfig, LoadReport]:
    """Build the source's own network, load it strictly, then apply the requested changes."""
    kwargs = {key: value for key, value in options.items() if value is not None}
    placement = {key: kwargs.pop(key) for key in ("device", "dtype") if key in kwargs}
    classes = config.num_classes if num_classes is None else num_classes
    replace = new_head or classes != config.num_classes
    pool = kwargs.pop("global_pool", None) if replace else None
    state, notes = keys.plain_names(weights.state), list(weights.notes)
    chans = in_chans or config.in_chans
    if chans != config.in_chans:
        notes.append(_adapt(state, config.in_chans, chans, origin))

    built = {**config.model_args, **kwargs, "in_chans": chans}
    with torch.device("meta"):  # the file's tensors replace the parameters, so these need no initialization
        model = build(config.architecture, num_classes=config.num_classes, **built)
    report = load_state(model, state, where=origin)
    notes += report.notes
    if replace:
        model.reset_classifier(classes, pool)
        notes.append(_head_note(origin, config.num_classes, classes))
    model.to(**placement)

    model.pretrained_cfg = model.default_cfg = _cfg_attribute(config)
    config = _as_built(config, built, model, replace)
    report = LoadReport(report.dropped, new_head=replace and classes > 0, notes=tuple(notes))
    return model, config, report


def _adapt(state: dict[str, Tensor], stored: int, wanted: int, where: str) -> str:
    weight = state.get(keys.FIRST_CONV)
    if weight is not None and weight.ndim == 4 and weight.shape[1] == stored:
        state[keys.FIRST_CONV] = adapt_first_conv(weight, wanted)
    return f"the first convolution of {where} was adapted from {stored} to {wanted} channels."


def _head_note(where: str, stored: int, classes: int) -> str:
    if classes == 0:
        return f"the classifier of {where} ({stored} classes) was removed, as requested."
    return f"the classifier of {where} ({stored} classes) was replaced by a new one ({classes}), which needs training."


def _as_built(config: ModelConfig, built: Mapping[str, Any], model: DLA, replaced: bool) -> ModelConfig:
    """Return the source's config as changed by the options. Drop rates are for training and not stored."""
    args = {key: built[key] for key in ("in_chans", "output_stride") if key in built}
    args["global_pool"] = model.global_pool.pool_type
    cfg: dict[str, Any] = {key: value for key, value in config.pretrained_cfg.items() if key != "global_pool"}
    if cfg.get("input_size"):
        cfg["input_size"] = (model.in_chans, *cfg["input_size"][1:])
    cfg["num_classes"] = model.num_classes
    config = dataclasses.replace(config, model_args=args, pretrained_cfg=cfg)
    if not replaced:
        return config
    return dataclasses.replace(
        config,
        num_classes=model.num_classes,
        label_names=None,
        label_descriptions=None,
        pretrained_cfg={key: value for key, value in cfg.items() if not key.startswith("label_")},
        dla={key: value for key, value in config.dla.items() if key in _OF_THE_BODY},
    )


def _cfg_attribute(config: ModelConfig) -> dict[str, Any]:
    """Return timm's `model.pretrained_cfg`: the source's fields over the table's preprocessing."""
    cfg = row(config.architecture).pretrained_cfg().to_dict()
    stored = {key: tuple(value) if isinstance(value, list) else value for key, value in config.pretrained_cfg.items()}
    root = {
        name: getattr(config, name) for name in ("architecture", "num_classes", "label_names", "label_descriptions")
    }
    return {key: cfg[key] for key in PREPROCESSING} | stored | {k: v for k, v in root.items() if v is not None}


def adapt_first_conv(weight: Tensor, in_chans: int) -> Tensor:
    """Return the first convolution's weight (C_out, C, kH, kW) for `in_chans` input channels, by timm's rule.

    One channel gets the sum over all channels; more get repeated copies, scaled to about the same sum.
    """
    stored = weight.shape[1]
    if in_chans == stored:
        return weight
    if in_chans == 1:
        return weight.float().sum(1, keepdim=True).to(weight.dtype)
    copies = -(-in_chans // stored)
    tiled = weight.float().repeat(1, copies, 1, 1)[:, :in_chans]
    return (tiled * (stored / in_chans)).to(weight.dtype)


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, new_head: bool = False, where: str = "") -> LoadReport:
    """Load a complete state dict, or nothing; `where` names its file in messages.

    Prefixes of wrappers are removed, missing batch-norm counters start at 0, and float types are converted to the
    network's. With `new_head` the classifier (`fc`) is not loaded.

    Raises:
        DamagedError: if tensors are missing, unknown, of another shape or not finite; the network is unchanged.
    """
    where = where or "the state dict"
    wanted = model.state_dict()
    tensors = keys.plain_names(state)
    unused = keys.unused_projections(model)
    dropped = {name for name in tensors if name not in wanted and unused.get(name) == tensors[name].shape}
    if isinstance(model, Dense):  # the authors' files keep the classifier of the backbone
        dropped |= {name for name in tensors if name.startswith(f"{keys.BASE}{keys.HEAD}") and name not in wanted}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    if new_head:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(keys.HEAD)}
        tensors |= {name: tensor for name, tensor in wanted.items() if name.startswith(keys.HEAD)}
    for name, tensor in wanted.items():
        if name.endswith(keys.COUNTER) and name not in tensors:
            tensors[name] = torch.zeros((), dtype=tensor.dtype)
    keys.check_match(model, keys.shapes_of(wanted), keys.shapes_of(tensors), where)
    converted = {name: _converted(name, tensors[name], tensor, where) for name, tensor in wanted.items()}
    model.load_state_dict(converted, strict=True, assign=any(tensor.is_meta for tensor in wanted.values()))
    return LoadReport(tuple(sorted(dropped)), new_head, _notes(where, dropped, new_head))


def _notes(where: str, dropped: Collection[str], new_head: bool) -> tuple[str, ...]:
    heads = [name for name in dropped if name.startswith(f"{keys.BASE}{keys.HEAD}")]
    layers = ", ".join(sorted({name.rsplit(".", 2)[0] for name in dropped if name not in heads}))
    notes = [f"{where} has projections that no output depends on; these were dropped: {layers}."] if layers else []
    if heads:
        notes.append(f"{where} has the classifier of its backbone ({keys.BASE}fc), which was dropped too.")
    notes += [f"the classifier of {where} was not loaded; the network keeps its own."] if new_head else []
    return tuple(notes)


def _converted(name: str, tensor: Tensor, wanted: Tensor, where: str) -> Tensor:
    """Return a checked copy of a tensor in the network's type and on its device."""
    plain = tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta or tensor.is_complex())
    if not plain or tensor.is_floating_point() != wanted.is_floating_point() or tensor.element_size() == 1:
        stored = f"{tensor.dtype}".removeprefix("torch.")
        raise DamagedError(
            f"{name} of {where} is stored as {stored} ({tensor.layout}, {tensor.device}), which is not a weight."
        )
    device = tensor.device if wanted.is_meta else wanted.device
    converted = tensor.to(device=device, dtype=wanted.dtype, copy=True)
    if not converted.isfinite().all():
        raise DamagedError(f"{name} of {where} holds values that are infinite or not numbers. Try: another copy of it.")
    return converted
