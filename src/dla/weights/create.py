"""Build a network by name, with or without its weights."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, overload

from torch import nn

from dla.errors import UnknownNameError, UsageError
from dla.models.build import MODEL_OPTIONS, build, check_options
from dla.models.dense import Dense
from dla.models.dla import DLA
from dla.models.feature_net import FEATURE_OPTIONS, features_of
from dla.models.registry import MODULE, PretrainedCfg, get_pretrained_cfg, is_model, row
from dla.weights.identify import task_of
from dla.weights.keys import plain_names
from dla.weights.load import create_untrained, load_dense, load_model, load_state
from dla.weights.model_folder import COMMANDS
from dla.weights.spec import open_files
from dla.weights.state_files import read_state

_PLACES = ("file", "state_dict", "hf_hub_id", "hf_hub_filename", "url")
_CFG_FIELDS = tuple(field.name for field in dataclasses.fields(PretrainedCfg))

StrPath = str | os.PathLike[str]


@overload
def create_model(
    model_name: str, pretrained: bool = ..., *, features_only: Literal[True], **kwargs: Any
) -> nn.Module: ...
@overload
def create_model(
    model_name: str, pretrained: bool = ..., *, task: Literal["segment", "edges"], **kwargs: Any
) -> Dense: ...
@overload
def create_model(model_name: str, pretrained: bool = ..., **kwargs: Any) -> DLA: ...
def create_model(
    model_name: str,
    pretrained: bool = False,
    pretrained_cfg: str | Mapping[str, Any] | object | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    checkpoint_path: StrPath | None = None,
    cache_dir: StrPath | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a network by name, with random, released or other weights.

    Args:
        model_name: a network of `list_models()`, with or without a tag (`dla60.in1k`); or `hf-hub:owner/name`,
            `local-dir:PATH`, `shipped:NAME`, or a path to a model folder or file, which then determine the network,
            its classes and its input.
        pretrained: load its weights, from the cache or the hub. Another `num_classes` replaces the classifier, another
            `in_chans` adapts the first convolution.
        pretrained_cfg: the weights: a tag, or a record that replaces the released one (a `PretrainedCfg`, or a dict of
            its fields).
        pretrained_cfg_overlay: fields that override that record's, such as `dict(file=PATH)` or
            `dict(hf_hub_id="owner/name")` for other weights, `dict(mean=...)` for other preprocessing. A file of other
            weights determines the number of classes, unless `num_classes` is among the fields.
        checkpoint_path: a .safetensors or .pth file with weights for exactly this network.
        cache_dir: the hub's cache, by default huggingface_hub's own.
        scriptable: ignored, as are the next two: timm's switches for layers that these networks do not have.
        exportable: ignored.
        no_jit: ignored.
        kwargs: other arguments of `DLA` (num_classes, in_chans, output_stride, global_pool, ...); None means the
            default. `features_only=True` returns a `FeatureNet` instead and accepts its arguments (out_indices,
            feature_cls, ...); weights are then loaded without the classifier. `task="segment"` or `task="edges"`
            returns a `Dense` network of `num_classes` with `down_ratio` 2, 4 or 8, and `up` as for `Dense`; weights are
            those of the whole network if the source is of this task, else those of the backbone.

    Raises:
        UnknownNameError: if there is no such network, or no weights of that tag.
        UsageError: if the name resolves to no model, or arguments contradict each other.
        TypeError: if there is no such option.
        UnavailableError: if the weights are unavailable.
        DamagedError: if the weights are damaged.
    """
    options = {name: value for name, value in kwargs.items() if value is not None}
    if options.get("task", "classify") != "classify":
        given = {"pretrained_cfg": pretrained_cfg, "pretrained_cfg_overlay": pretrained_cfg_overlay}
        return _dense(model_name, pretrained, options, checkpoint_path, given | {"cache_dir": cache_dir})
    options.pop("task", None)
    wrap: Callable[[DLA], nn.Module] | None = None
    if options.pop("features_only", False):
        wrap = partial(features_of, **{name: options.pop(name) for name in FEATURE_OPTIONS if name in options})
        options["num_classes"] = 0
    check_options(model_name, options, MODEL_OPTIONS)
    check_options("pretrained_cfg_overlay", pretrained_cfg_overlay or (), _CFG_FIELDS)
    pretrained = pretrained and not checkpoint_path  # do not fetch weights that the file replaces
    if is_model(model_name) and not re.search(r"[/\\:]", model_name):
        model = _of_table(model_name, pretrained, pretrained_cfg, pretrained_cfg_overlay, cache_dir, options)
    elif pretrained_cfg:
        raise UsageError(f"{model_name} brings its own pretrained_cfg. Try: pretrained_cfg_overlay for single fields")
    else:
        model = _of_source(model_name, pretrained, pretrained_cfg_overlay, cache_dir, options)
    net = wrap(model) if wrap else model
    if checkpoint_path:
        _load_checkpoint(model, net, checkpoint_path)
    return net


def _dense(
    model_name: str, pretrained: bool, options: dict[str, Any], checkpoint: StrPath | None, given: dict[str, Any]
) -> Dense:
    """Build a dense network: by a model folder of this task, else over the backbone that `model_name` names."""
    task = options.pop("task")
    if task not in COMMANDS:
        raise UsageError(f"task is {task!r}. Allowed: {', '.join(COMMANDS)}")
    classes, dense = options.pop("num_classes", None), {k: options.pop(k) for k in ("down_ratio", "up") if k in options}
    if not is_model(model_name):
        files = open_files(model_name, given["cache_dir"])
        if pretrained and task_of(files) == task:
            check_options(model_name, [*options, *dense], ())
            return load_dense(files).model
    if classes is None and task == "segment":
        raise UsageError("a segmentation network needs num_classes, such as num_classes=11")
    backbone: DLA = create_model(model_name, pretrained, num_classes=0, **given, **options)
    network = Dense.over(backbone, 1 if task == "edges" else classes, **dense)
    if checkpoint:
        load_state(network, read_state(checkpoint), where=str(checkpoint))
    return network


def _of_source(
    source: str, pretrained: bool, overlay: Mapping[str, Any] | None, cache_dir: StrPath | None, options: dict[str, Any]
) -> DLA:
    others = [name for name in _PLACES if overlay and overlay.get(name)]
    if others:
        raise UsageError(f"{source} names the weights, but {others[0]} of pretrained_cfg_overlay names other ones")
    if pretrained:
        return load_model(source, cache_dir=cache_dir, overlay=overlay, **options).model
    return create_untrained(source, cache_dir=cache_dir, overlay=overlay, **options)


def _of_table(
    model_name: str,
    pretrained: bool,
    pretrained_cfg: str | Mapping[str, Any] | object | None,
    overlay: Mapping[str, Any] | None,
    cache_dir: StrPath | None,
    options: dict[str, Any],
) -> DLA:
    name, _, tag = model_name.partition(".")
    fields = dict(overlay or {})
    if not pretrained_cfg or isinstance(pretrained_cfg, str):
        cfg = get_pretrained_cfg(f"{name}.{pretrained_cfg or tag}")
        assert cfg is not None
    else:
        fields = _fields(pretrained_cfg) | fields
        check_options("pretrained_cfg", fields, _CFG_FIELDS)
        cfg = PretrainedCfg(architecture=name)
    cfg = dataclasses.replace(cfg, **fields)
    if len(cfg.input_size) != 3:
        raise UsageError(f"input_size of pretrained_cfg is {cfg.input_size!r}. Allowed: (channels, height, width)")

    if pretrained and not cfg.state_dict:
        source = _place(model_name, cfg)
        model = load_model(source, architecture=name, cache_dir=cache_dir, overlay=fields, **options).model
        stored = {key: model.pretrained_cfg[key] for key in ("num_classes", "input_size")}
    else:
        stored = {}
        model = build(name, **{"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0], **options})
        if pretrained and cfg.state_dict:
            load_state(model, cfg.state_dict, new_head=model.num_classes != cfg.num_classes)
    model.pretrained_cfg = model.default_cfg = cfg.to_dict() | stored
    return model


def _fields(cfg: Mapping[str, Any] | object) -> dict[str, Any]:
    """Return the fields of a record of weights: a dict, our or timm's PretrainedCfg, or a plain object."""
    if isinstance(cfg, Mapping):
        return dict(cfg)
    return dict(cfg.to_dict()) if hasattr(cfg, "to_dict") else dict(vars(cfg))


def _place(model_name: str, cfg: PretrainedCfg) -> str:
    """Return the source for `load_model` that a record names."""
    if cfg.file:
        return os.path.abspath(os.path.expanduser(cfg.file))  # absolute, so never taken for a network's name
    if cfg.hf_hub_id and not cfg.hf_hub_filename:
        return f"hf-hub:{cfg.hf_hub_id}"
    raise UsageError(
        f"{model_name} has no weights to load: its pretrained_cfg names neither file, state_dict nor hf_hub_id "
        "(url and hf_hub_filename are not supported). Try: pretrained_cfg_overlay=dict(file=PATH)"
    )


def _load_checkpoint(model: DLA, net: nn.Module, path: StrPath) -> None:
    """Load a file with the names of `net`, or of the whole `model`, which `net` is or shares its levels with."""
    state, where = plain_names(read_state(path)), os.fspath(path)
    whole = net is not model and not state.keys() <= net.state_dict().keys()
    load_state(model if whole else net, state, new_head=whole, where=where)


def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., nn.Module]:
    """Return `create_model` with the network `model_name` set; its tag is ignored.

    Raises:
        UnknownNameError: if there is no such network, or none in this module of timm's; all are in "dla".
    """
    if module_filter not in (None, "", MODULE):
        raise UnknownNameError("module of networks", str(module_filter), [MODULE])
    return partial(create_model, row(model_name.partition(".")[0]).name)
