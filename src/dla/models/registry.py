"""The table of networks and their released weights, under timm's names. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal

from dla.errors import UnknownNameError
from dla.types import IMAGENET_MEAN, IMAGENET_STD

MODULE = "dla"  # timm's module of these networks

_PLACES = ("url", "file", "hf_hub_id", "hf_hub_filename", "source")
_KEPT_EMPTY = ("pool_size", "first_conv", "classifier")

Patterns = str | Iterable[str]


@dataclass
class PretrainedCfg:
    """timm's description of a set of weights, with its field names and defaults.

    It holds where the weights are (`state_dict` takes precedence over `file`, and `file` over `hf_hub_id`), their
    preprocessing, classes, licence and origin.
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
        """Whether it names a location of weights."""
        return bool(self.url or self.file or self.hf_hub_id)

    def to_dict(self, remove_source: bool = False, remove_null: bool = True) -> dict[str, Any]:
        """Return the fields by name, by default without None; with `remove_source`, without the weights' location."""
        dropped = set(_PLACES) if remove_source else set()
        if remove_null:
            dropped |= {name for name, value in vars(self).items() if value is None and name not in _KEPT_EMPTY}
        return {name: value for name, value in vars(self).items() if name not in dropped}


def list_models(
    filter: Patterns = "",
    module: Patterns = "",
    pretrained: bool = False,
    exclude_filters: Patterns = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
) -> list[str]:
    """Return the networks' names, in natural order.

    Args:
        filter: one or several patterns such as "dla60*"; a name has to match one of them.
        module: "dla" or empty; no network is in another module.
        pretrained: only networks with released weights.
        exclude_filters: patterns of names to leave out.
        name_matches_cfg: ignored: each network has a record under its own name.
        include_tags: list `dla60.in1k` instead of `dla60`; defaults to `pretrained`.
    """
    tagged = pretrained if include_tags is None else include_tags
    modules = _several(module)
    rows = [] if modules and MODULE not in modules else [r for r in TABLE.values() if r.tag or not pretrained]
    wanted, unwanted = _patterns(filter, tagged), _patterns(exclude_filters, tagged)
    names = [r.tagged_name if tagged else r.name for r in rows]
    kept = [name for name in names if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)]
    return sorted(kept, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])


def list_pretrained(filter: Patterns = "", exclude_filters: Patterns = "") -> list[str]:
    """Return the names of the released sets of weights (`dla60.in1k`); patterns as in `list_models`."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters)


def list_modules() -> list[str]:
    """Return timm's modules of these networks: only "dla"."""
    return [MODULE]


def is_model(model_name: str) -> bool:
    """Return whether there is a network of this name, ignoring a tag after a dot."""
    return model_name.partition(".")[0] in TABLE


def is_model_pretrained(model_name: str) -> bool:
    """Return whether this name, with or without a tag, has released weights."""
    return any(model_name in (r.name, r.tagged_name) for r in TABLE.values() if r.tag)


def get_pretrained_cfg(model_name: str, allow_unregistered: bool = True) -> PretrainedCfg | None:
    """Return the record of the weights of `dla60` or `dla60.in1k`; None for a network that is not in the table.

    Raises:
        UnknownNameError: if the network has no weights of that tag, or is unknown without `allow_unregistered`.
    """
    name, _, tag = model_name.partition(".")
    if name not in TABLE and allow_unregistered:
        return None
    r = row(name)
    if tag and tag != r.tag:
        raise UnknownNameError("released set of weights", model_name, [r.tagged_name] if r.tag else [])
    return r.pretrained_cfg()


def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> Any:
    """Return one field of `get_pretrained_cfg`; None if it has no such field.

    Raises:
        UnknownNameError: if there is no such network, or it has no weights of that tag.
    """
    return getattr(get_pretrained_cfg(model_name, allow_unregistered=False), cfg_key, None)


def _several(value: Patterns) -> list[str]:
    return [value] if isinstance(value, str) and value else list(value)


def _patterns(value: Patterns, tagged: bool) -> list[str]:
    """Return the patterns; if names are `tagged`, a pattern without a tag matches every tag."""
    patterns = _several(value)
    return patterns + [f"{pattern}.*" for pattern in patterns if tagged and "." not in pattern]


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


BlockName = Literal["basic", "bottleneck", "bottleneck_x", "bottle2neck"]

# timm's "fast..." poolings compute the same in another way
GLOBAL_POOLS = ("avg", "max", "avgmax", "catavgmax", "", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")


@dataclass(frozen=True, slots=True)
class Row:
    """A network of the table.

    `depths` are the numbers of convolutions in levels 0 and 1 and the depths n of the trees (2^n blocks, 2^(n-1)
    aggregation nodes) in levels 2 to 5. `channels` are those of their maps. `shortcut` adds the newest input of each
    aggregation node to its output. `macs` are for an image of 224x224 pixels, `top1` and `top5` in percent.
    """

    name: str
    depths: tuple[int, int, int, int, int, int]
    channels: tuple[int, int, int, int, int, int]
    block: BlockName
    cardinality: int = 1
    base_width: int = 64
    shortcut: bool = False
    params: int = 0
    macs: int = 0
    top1: float | None = None
    top5: float | None = None
    tag: str | None = "in1k"
    license: str = "bsd-3-clause"
    origin: str = "https://github.com/ucbdrive/dla"

    @property
    def tagged_name(self) -> str:
        """The name with the tag of the released weights, if there are any."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    @property
    def hub_id(self) -> str | None:
        """Hub repository of the released weights; None if there are none."""
        return f"timm/{self.tagged_name}" if self.tag else None

    def pretrained_cfg(self) -> PretrainedCfg:
        """Return timm's record of the released weights and their preprocessing."""
        return PretrainedCfg(
            url="",
            hf_hub_id=self.hub_id,
            architecture=self.name,
            tag=self.tag or "",
            pool_size=(7, 7),
            interpolation="bilinear",
            first_conv="base_layer.0",
            classifier="fc",
            license=self.license,
            origin_url=self.origin,
            paper_name="Deep Layer Aggregation",
            paper_ids="arXiv:1707.06484",
        )


_RES2NET = "https://github.com/gasvn/Res2Net"
_COMPACT = (16, 32, 64, 64, 128, 256)
_WIDE = (16, 32, 128, 256, 512, 1024)

# fmt: off
_ROWS = (
    Row("dla34", (1, 1, 1, 2, 2, 1), (16, 32, 64, 128, 256, 512), "basic",
        params=15_742_104, macs=3_060_043_776, top1=74.632, top5=92.052),
    Row("dla46_c", (1, 1, 1, 2, 2, 1), _COMPACT, "bottleneck",
        params=1_301_400, macs=574_269_440, top1=64.880, top5=86.330),
    Row("dla46x_c", (1, 1, 1, 2, 2, 1), _COMPACT, "bottleneck_x", cardinality=32, base_width=4,
        params=1_068_440, macs=532_723_712, top1=66.008, top5=86.946),
    Row("dla60x_c", (1, 1, 1, 2, 3, 1), _COMPACT, "bottleneck_x", cardinality=32, base_width=4,
        params=1_319_832, macs=581_294_080, top1=67.928, top5=88.426),
    Row("dla60", (1, 1, 1, 2, 3, 1), _WIDE, "bottleneck",
        params=22_036_632, macs=4_235_878_400, top1=77.036, top5=93.316),
    Row("dla60x", (1, 1, 1, 2, 3, 1), _WIDE, "bottleneck_x", cardinality=32, base_width=4,
        params=17_352_344, macs=3_516_555_264, top1=78.234, top5=94.022),
    Row("dla102", (1, 1, 1, 3, 4, 1), _WIDE, "bottleneck", shortcut=True,
        params=33_268_888, macs=7_164_551_168, top1=78.016, top5=93.952),
    Row("dla102x", (1, 1, 1, 3, 4, 1), _WIDE, "bottleneck_x", cardinality=32, base_width=4, shortcut=True,
        params=26_309_272, macs=5_847_932_928, top1=78.516, top5=94.226),
    Row("dla102x2", (1, 1, 1, 3, 4, 1), _WIDE, "bottleneck_x", cardinality=64, base_width=4, shortcut=True,
        params=41_282_200, macs=9_283_985_408, top1=79.448, top5=94.654),
    Row("dla169", (1, 1, 2, 3, 5, 1), _WIDE, "bottleneck", shortcut=True,
        params=53_389_720, macs=11_557_560_320, top1=78.702, top5=94.334),
    Row("dla60_res2net", (1, 1, 1, 2, 3, 1), _WIDE, "bottle2neck", cardinality=1, base_width=28,
        params=20_848_072, macs=4_122_681_344, top1=78.480, top5=94.204,
        license="unknown", origin=_RES2NET),
    Row("dla60_res2next", (1, 1, 1, 2, 3, 1), _WIDE, "bottle2neck", cardinality=8, base_width=4,
        params=17_032_984, macs=3_458_752_512, top1=78.488, top5=94.144,
        license="unknown", origin=_RES2NET),
    # Not from the paper: dla34 with half the channels, for small photos and small machines.
    Row("dla34_half", (1, 1, 1, 2, 2, 1), (8, 16, 32, 64, 128, 256), "basic", params=4_068_736, macs=794_642_432,
        tag=None, license="", origin=""),
)

# fmt: on
TABLE: MappingProxyType[str, Row] = MappingProxyType({r.name: r for r in _ROWS})


def row(name: str) -> Row:
    """Return the table's row of the network called `name`.

    Raises:
        UnknownNameError: if there is no such network; the message lists the nearest names.
    """
    try:
        return TABLE[name]
    except KeyError:
        raise UnknownNameError("network", name, TABLE, see="dla models") from None


UPSAMPLINGS = ("bilinear", "authors")  # of decoders
DOWN_RATIOS = (2, 4, 8)  # strides of the finest map that a dense network decodes
PRE_LOGITS = "pre_logits"  # the feature node before the classifier
LOGITS = "logits"  # that of a dense network after it, at the size of the photo


def check_feature_node(at: str, known: Collection[str]) -> None:
    """Raise an UnknownNameError unless `at` is one of the known feature nodes."""
    if at not in known:
        largest = ", ".join(name for name in known if "." not in name)
        raise UnknownNameError("node of this network", at, known, f"{largest}, and what dla info MODEL --nodes lists")
