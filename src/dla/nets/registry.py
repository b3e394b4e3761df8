"""Which networks there are, and what is known about their released weights, under timm's names. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from dla.errors import UnknownNameError
from dla.nets.table import IMAGENET_MEAN, IMAGENET_STD, TABLE, Row

__all__ = [
    "PretrainedCfg",
    "get_pretrained_cfg",
    "get_pretrained_cfg_value",
    "is_model",
    "is_model_pretrained",
    "list_models",
    "list_modules",
    "list_pretrained",
]

MODULE = "dla"  # timm sorts its networks into modules; all of these are in that one

_PLACES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source")
_KEPT_EMPTY = ("pool_size", "first_conv", "classifier")

Patterns = str | Iterable[str]


@dataclass
class PretrainedCfg:
    """timm's record of one set of weights, by its names and with its defaults.

    Where they are (`state_dict` goes before `file`, and that before `hf_hub_id`), how photos are prepared for them,
    what their classes are, whose they are.
    """

    url: str | None = None
    file: str | None = None
    state_dict: Mapping[str, Any] | None = None
    hf_hub_id: str | None = None
    hf_hub_filename: str | None = None
    source: str | None = None
    architecture: str | None = None
    tag: str | None = None
    custom_load: bool = False
    input_size: tuple[int, int, int] = (3, 224, 224)
    test_input_size: tuple[int, int, int] | None = None
    min_input_size: tuple[int, int, int] | None = None
    fixed_input_size: bool = False
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    test_crop_pct: float | None = None
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    num_classes: int = 1000
    label_offset: int | None = None
    label_names: tuple[str, ...] | None = None
    label_descriptions: Mapping[str, str] | None = None
    pool_size: tuple[int, ...] | None = None
    test_pool_size: tuple[int, ...] | None = None
    first_conv: str | None = None
    classifier: str | None = None
    license: str | None = None
    description: str | None = None
    origin_url: str | None = None
    paper_name: str | None = None
    paper_ids: str | tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None

    @property
    def has_weights(self) -> bool:
        """Whether it names a place where weights are."""
        return bool(self.url or self.file or self.hf_hub_id)

    def to_dict(self, remove_source: bool = False, remove_null: bool = True) -> dict[str, Any]:
        """The fields by name, without those that are None and, if asked, without the places of the weights."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        dropped = {name for name, value in values.items() if value is None and name not in _KEPT_EMPTY and remove_null}
        return {
            name: value
            for name, value in values.items()
            if name not in dropped and not (remove_source and name in _PLACES)
        }


def list_models(
    filter: Patterns = "",
    module: Patterns = "",
    pretrained: bool = False,
    exclude_filters: Patterns = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """The networks' names, sorted with their numbers as numbers.

    Args:
        filter: one pattern such as "dla60*" or several; a name has to match one of them.
        module: "dla", or nothing; no network is in another one.
        pretrained: those with released weights only.
        exclude_filters: patterns of names that are left out again.
        name_matches_cfg: changes nothing: each network has a record under its own name.
        include_tags: `dla60.in1k` in place of `dla60`; without a value, as `pretrained`.
    """
    tagged = pretrained if include_tags is None else include_tags
    modules = _several(module)
    rows = [] if modules and MODULE not in modules else [r for r in TABLE.values() if r.tag or not pretrained]
    wanted, unwanted = _patterns(filter, tagged), _patterns(exclude_filters, tagged)
    names = [_tagged(r) if tagged else r.name for r in rows]
    kept = [name for name in names if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)]
    return sorted(kept, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])


def list_pretrained(filter: Patterns = "", exclude_filters: Patterns = "") -> list[str]:
    """The names of the released sets of weights (`dla60.in1k`); patterns as in `list_models`."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters)


def list_modules() -> list[str]:
    """timm's modules that networks are in: one."""
    return [MODULE]


def is_model(model_name: str) -> bool:
    """Whether there is a network of that name, whatever the tag after a dot."""
    return model_name.partition(".")[0] in TABLE


def is_model_pretrained(model_name: str) -> bool:
    """Whether a name, with a tag or without, has released weights."""
    return any(model_name in (r.name, _tagged(r)) for r in TABLE.values() if r.tag)


def get_pretrained_cfg(model_name: str, allow_unregistered: bool = True) -> PretrainedCfg | None:
    """The record of `dla60`'s or `dla60.in1k`'s weights; None for a network of another table.

    Raises:
        UnknownNameError: the network has no weights of that tag, or, without `allow_unregistered`, there is none.
    """
    name, _, tag = model_name.partition(".")
    r = TABLE.get(name)
    if r is None:
        if allow_unregistered:
            return None
        raise UnknownNameError("network", name, TABLE, see="dla models")
    if tag and tag != r.tag:
        raise UnknownNameError("released set of weights", model_name, [_tagged(r)] if r.tag else [])
    return PretrainedCfg(**r.pretrained_cfg())


def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> Any:
    """One field of `get_pretrained_cfg`, None if it has no such field.

    Raises:
        UnknownNameError: no such network, or it has no weights of that tag.
    """
    return getattr(get_pretrained_cfg(model_name, allow_unregistered=False), cfg_key, None)


def _tagged(r: Row) -> str:
    return f"{r.name}.{r.tag}" if r.tag else r.name


def _several(value: Patterns) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value)


def _patterns(value: Patterns, tagged: bool) -> list[str]:
    """With tags, a pattern without one is for every tag."""
    given = _several(value)
    return given + [f"{pattern}.*" for pattern in given if tagged and "." not in pattern]


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
