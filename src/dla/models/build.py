"""Build a network from its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from dla.errors import nearest
from dla.models.dla import DLA
from dla.models.registry import row

_FROM_ROW = ("levels", "channels", "block", "cardinality", "base_width", "shortcut_root")
MODEL_OPTIONS = tuple(name for name in inspect.signature(DLA).parameters if name not in _FROM_ROW)


def build(name: str, **options: Any) -> DLA:
    """Build the network called `name` with randomly initialized weights.

    `options` are the arguments of `DLA` that the name does not determine (num_classes, in_chans, output_stride, ...);
    None means the default.

    Raises:
        UnknownNameError: if there is no such network.
        TypeError: if there is no such option.
    """
    r = row(name)
    check_options(name, options, MODEL_OPTIONS)
    kwargs = {k: v for k, v in options.items() if v is not None}
    model = DLA(
        r.depths,
        r.channels,
        block=r.block,
        cardinality=r.cardinality,
        base_width=r.base_width,
        shortcut_root=r.shortcut,
        **kwargs,
    )
    model.pretrained_cfg = model.default_cfg = r.pretrained_cfg().to_dict()
    return model


def check_options(owner: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    """Raise a TypeError for the first of `names` that is not in `known`; `owner` names what has the options."""
    for option in names:
        if option not in known:
            near = nearest(option, known)
            raise TypeError(
                f"{owner} has no option {option!r}. "
                + (f"Nearest: {', '.join(near)}" if near else f"Options: {', '.join(known)}")
            )
