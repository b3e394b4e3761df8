"""The only factory: a name becomes a network."""

from __future__ import annotations

import fnmatch
import inspect
import os
from typing import Any

from dla.errors import nearest
from dla.nets.backbone import DLA
from dla.nets.table import TABLE, row

__all__ = ["build", "create_model", "list_models"]

_FROM_ROW = ("levels", "channels", "block", "cardinality", "base_width", "shortcut_root")
_OPTIONS = tuple(name for name in inspect.signature(DLA).parameters if name not in _FROM_ROW)


def build(name: str, **options: Any) -> DLA:
    """The network called `name` with fresh weights.

    `options` are DLA's arguments that the row does not settle (num_classes, in_chans, output_stride, ...); a value
    of None means the default.

    Raises:
        UnknownNameError: no such network.
        TypeError: no such option.
    """
    r = row(name)
    for option in options:
        if option not in _OPTIONS:
            near = nearest(option, _OPTIONS)
            raise TypeError(
                f"{name} has no option {option!r}. "
                + (f"Nearest: {', '.join(near)}" if near else f"Options: {', '.join(_OPTIONS)}")
            )
    given = {k: v for k, v in options.items() if v is not None}
    model = DLA(
        r.depths,
        r.channels,
        block=r.block,
        cardinality=r.cardinality,
        base_width=r.base_width,
        shortcut_root=r.shortcut,
        **given,
    )
    model.pretrained_cfg = model.default_cfg = r.pretrained_cfg()
    return model


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    checkpoint_path: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> DLA:
    """A network by its name, with fresh weights, released ones, or those of a file.

    Args:
        model_name: a network of `list_models()`; with `pretrained` also `dla60.in1k`, `hf-hub:owner/name`,
            `local-dir:PATH`, `shipped:NAME`, or a path to a model folder or file.
        pretrained: load its weights: from the cache, else from the hub. Another `num_classes` replaces the
            classifier, another `in_chans` adapts the first convolution.
        checkpoint_path: a .safetensors or .pth file to load strictly instead.
        cache_dir: where files from the hub are kept, in place of its usual cache.
        options: `DLA`'s other arguments (num_classes, in_chans, output_stride, global_pool, ...).

    Raises:
        UnknownNameError: no such network.
        TypeError: no such option.
        UnavailableError: the weights cannot be had, or (DamagedError) are not what they should be.
    """
    from dla.weights.load import open_model  # weights are built on networks, so not at the top

    architecture = model_name.partition(".")[0]
    if checkpoint_path is not None:
        return open_model(os.fspath(checkpoint_path), architecture=architecture, **options).model
    if pretrained:
        return open_model(model_name, cache_dir=cache_dir, **options).model
    return build(architecture, **options)


def list_models(filter: str = "*", *, pretrained: bool = False) -> list[str]:
    """The networks' names that match a pattern such as "dla60*", sorted; `pretrained`: those with released weights."""
    return sorted(n for n, r in TABLE.items() if fnmatch.fnmatchcase(n, filter) and (r.tag or not pretrained))
