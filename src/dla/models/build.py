"""The only factory: a name becomes a network."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from dla.errors import nearest
from dla.models.dla import DLA
from dla.models.registry import PretrainedCfg, row

__all__ = ["MODEL_OPTIONS", "build", "check_options"]


_FROM_ROW = ("levels", "channels", "block", "cardinality", "base_width", "shortcut_root")
MODEL_OPTIONS = tuple(name for name in inspect.signature(DLA).parameters if name not in _FROM_ROW)


def build(name: str, **options: Any) -> DLA:
    """The network called `name` with fresh weights.

    `options` are DLA's arguments that the row does not settle (num_classes, in_chans, output_stride, ...); a value
    of None means the default.

    Raises:
        UnknownNameError: no such network.
        TypeError: no such option.
    """
    r = row(name)
    check_options(name, options, MODEL_OPTIONS)
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
    model.pretrained_cfg = model.default_cfg = PretrainedCfg(**r.pretrained_cfg()).to_dict()
    return model


def check_options(owner: str, given: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise a TypeError that names the first option of `given` that is not in `known`."""
    for option in given:
        if option not in known:
            near = nearest(option, known)
            raise TypeError(
                f"{owner} has no option {option!r}. "
                + (f"Nearest: {', '.join(near)}" if near else f"Options: {', '.join(known)}")
            )
