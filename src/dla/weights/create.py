"""`create_model`: build a network by name, with or without its weights."""

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
from dla.models.dla import DLA
from dla.models.feature_net import FEATURE_OPTIONS, features_of
from dla.models.registry import MODULE, PretrainedCfg, get_pretrained_cfg, is_model, row
from dla.weights.keys import plain_names
from dla.weights.load import create_untrained, load_model, load_state
from dla.weights.state_files import read_state

__all__ = ["create_model", "model_entrypoint"]


_PLACES = ("file", "state_dict", "hf_hub_id", "hf_hub_filename", "url")
_CFG_FIELDS = tuple(field.name for field in dataclasses.fields(PretrainedCfg))

StrPath = str | os.PathLike[str]


@overload
def create_model(
    model_name: str, pretrained: bool = ..., *, features_only: Literal[True], **kwargs: Any
) -> nn.Module: ...
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
    """A network by its name, with fresh weights, released ones, or those of a file.

    Args:
        model_name: a network of `list_models()`, with a tag or without (`dla60.in1k`); or `hf-hub:owner/name`,
            `local-dir:PATH`, `shipped:NAME`, or a path to a model folder or file: then what is there says which
            network it is, of how many classes and of which input.
        pretrained: load its weights: from the cache, else from the hub. Another `num_classes` replaces the
            classifier, another `in_chans` adapts the first convolution.
        pretrained_cfg: which weights of a network they are: a tag, or a record in place of the released one's (a
            `PretrainedCfg`, or a dict of its fields).
        pretrained_cfg_overlay: fields that go before that record's: `dict(file=PATH)` or `dict(hf_hub_id="owner/name")`
            for other weights, `dict(mean=...)` and so on for another preprocessing. A file of other weights says itself
            how many classes it has, unless `num_classes` is among the fields.
        checkpoint_path: a .safetensors or .pth file with the weights of exactly the network that is made.
        cache_dir: where files from the hub are kept, in place of its usual cache.
        scriptable, exportable, no_jit: change nothing: timm's switches for layers that these networks do not have.
        kwargs: `DLA`'s other arguments (num_classes, in_chans, output_stride, global_pool, ...); None means the
            default. `features_only=True` gives a `FeatureNet` in place of the network, and takes its arguments
            (out_indices, feature_cls, ...); weights then load without their classifier.

    Raises:
        UnknownNameError: no such network, or no weights of that tag.
        UsageError: another kind of name that leads nowhere, or arguments that contradict each other.
        TypeError: no such option.
        UnavailableError: the weights cannot be had, or (DamagedError) are not what they should be.
    """
    options = {name: value for name, value in kwargs.items() if value is not None}
    wrap: Callable[[DLA], nn.Module] | None = None
    if options.pop("features_only", False):
        wrap = partial(features_of, **{name: options.pop(name) for name in FEATURE_OPTIONS if name in options})
        options["num_classes"] = 0
    check_options(model_name, options, MODEL_OPTIONS)
    check_options("pretrained_cfg_overlay", pretrained_cfg_overlay or (), _CFG_FIELDS)
    pretrained = pretrained and not checkpoint_path  # of what a file replaces nothing is fetched
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


# Weights are built on networks, so they are not imported at the top.
def _of_source(
    source: str, pretrained: bool, overlay: Mapping[str, Any] | None, cache_dir: StrPath | None, options: dict[str, Any]
) -> DLA:
    other = [name for name in _PLACES if overlay and overlay.get(name)]
    if other:
        raise UsageError(f"{source} names the weights, and {other[0]} of pretrained_cfg_overlay names others")
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
        found = {key: model.pretrained_cfg[key] for key in ("num_classes", "input_size")}
    else:
        found = {}
        model = build(name, **{"num_classes": cfg.num_classes, "in_chans": cfg.input_size[0], **options})
        if pretrained and cfg.state_dict:
            load_state(model, cfg.state_dict, new_head=model.num_classes != cfg.num_classes)
    model.pretrained_cfg = model.default_cfg = cfg.to_dict() | found
    return model


def _fields(cfg: Mapping[str, Any] | object) -> dict[str, Any]:
    """What a record of weights says, whether it is a dict, a PretrainedCfg of ours or timm's, or a plain object."""
    if isinstance(cfg, Mapping):
        return dict(cfg)
    return dict(cfg.to_dict()) if hasattr(cfg, "to_dict") else dict(vars(cfg))


def _place(model_name: str, cfg: PretrainedCfg) -> str:
    """The source of `load_model` that a record names."""
    if cfg.file:
        return os.path.abspath(os.path.expanduser(cfg.file))  # never taken for a network's name
    if cfg.hf_hub_id and not cfg.hf_hub_filename:
        return f"hf-hub:{cfg.hf_hub_id}"
    raise UsageError(
        f"{model_name} has no weights to load: its pretrained_cfg names neither file, state_dict nor hf_hub_id "
        "(url and hf_hub_filename are not followed). Try: pretrained_cfg_overlay=dict(file=PATH)"
    )


def _load_checkpoint(model: DLA, net: nn.Module, path: StrPath) -> None:
    """Load a file into `net`, which is `model` or shares its levels; the file has its names or the whole network's."""
    state, where = plain_names(read_state(path)), os.fspath(path)
    whole = net is not model and not state.keys() <= net.state_dict().keys()
    load_state(model if whole else net, state, new_head=whole, where=where)


def model_entrypoint(model_name: str, module_filter: str | None = None) -> Callable[..., nn.Module]:
    """A function that makes the network called `model_name` (whatever its tag): `create_model` without the name.

    Raises:
        UnknownNameError: no such network, or none in that one of timm's modules; all are in "dla".
    """
    if module_filter not in (None, "", MODULE):
        raise UnknownNameError("module of networks", str(module_filter), [MODULE])
    return partial(create_model, row(model_name.partition(".")[0]).name)
