"""One row a network: its shape, its size, its published figures. No torch, so that listing is instant.

Figures: `params` and `macs` count the network with 1000 classes at 224x224 (multiplications of the
convolutions; the classifier included). `top1` and `top5` are per cent on ImageNet-1k's validation photos at
224 pixels, centre crop of 0.875, bilinear, from timm's `results-imagenet.csv`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from dla.errors import UnknownNameError

__all__ = ["DEFAULT_MODEL", "GLOBAL_POOLS", "TABLE", "BlockName", "Row", "row"]

DEFAULT_MODEL = "shipped:tiny200"  # what classifies where no network is named

BlockName = Literal["basic", "bottleneck", "bottleneck_x", "bottle2neck"]

# "fast..." is timm's word for another way to compute the same
GLOBAL_POOLS = ("avg", "max", "avgmax", "catavgmax", "", "fast", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Row:
    """One network.

    `depths` are the aggregation depths of the six levels: convolutions in levels 0 and 1, the depth n of the
    tree (2^n blocks, 2^(n-1) aggregation nodes) in levels 2 to 5. `channels` are the widths of their maps.
    `shortcut` adds the newest input of an aggregation node to its output.
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
    tag: str | None = None
    licence: str = ""
    origin: str = ""

    @property
    def hub_id(self) -> str | None:
        """The hub repository of the released weights, or None where there are none."""
        return f"timm/{self.name}.{self.tag}" if self.tag else None

    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's record of the released weights and of the preprocessing they were trained with."""
        return {
            "url": "",
            "hf_hub_id": self.hub_id,
            "architecture": self.name,
            "tag": self.tag or "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "fixed_input_size": False,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "first_conv": "base_layer.0",
            "classifier": "fc",
            "license": self.licence,
            "origin_url": self.origin,
            "paper_name": "Deep Layer Aggregation",
            "paper_ids": "arXiv:1707.06484",
        }


def _released(
    name: str,
    depths: tuple[int, int, int, int, int, int],
    channels: tuple[int, int, int, int, int, int],
    block: BlockName,
    *,
    cardinality: int = 1,
    base_width: int = 64,
    shortcut: bool = False,
    size: tuple[int, int],
    accuracy: tuple[float, float],
) -> Row:
    res2 = block == "bottle2neck"
    return Row(
        name,
        depths,
        channels,
        block,
        cardinality,
        base_width,
        shortcut,
        *size,
        *accuracy,
        tag="in1k",
        licence="unknown" if res2 else "bsd-3-clause",
        origin="https://github.com/gasvn/Res2Net" if res2 else "https://github.com/ucbdrive/dla",
    )


_COMPACT = (16, 32, 64, 64, 128, 256)
_WIDE = (16, 32, 128, 256, 512, 1024)

# fmt: off
_ROWS = (
    _released("dla34", (1, 1, 1, 2, 2, 1), (16, 32, 64, 128, 256, 512), "basic",
              size=(15_742_104, 3_060_043_776), accuracy=(74.632, 92.052)),
    _released("dla46_c", (1, 1, 1, 2, 2, 1), _COMPACT, "bottleneck",
              size=(1_301_400, 574_269_440), accuracy=(64.880, 86.330)),
    _released("dla46x_c", (1, 1, 1, 2, 2, 1), _COMPACT, "bottleneck_x", cardinality=32, base_width=4,
              size=(1_068_440, 532_723_712), accuracy=(66.008, 86.946)),
    _released("dla60x_c", (1, 1, 1, 2, 3, 1), _COMPACT, "bottleneck_x", cardinality=32, base_width=4,
              size=(1_319_832, 581_294_080), accuracy=(67.928, 88.426)),
    _released("dla60", (1, 1, 1, 2, 3, 1), _WIDE, "bottleneck",
              size=(22_036_632, 4_235_878_400), accuracy=(77.036, 93.316)),
    _released("dla60x", (1, 1, 1, 2, 3, 1), _WIDE, "bottleneck_x", cardinality=32, base_width=4,
              size=(17_352_344, 3_516_555_264), accuracy=(78.234, 94.022)),
    _released("dla102", (1, 1, 1, 3, 4, 1), _WIDE, "bottleneck", shortcut=True,
              size=(33_268_888, 7_164_551_168), accuracy=(78.016, 93.952)),
    _released("dla102x", (1, 1, 1, 3, 4, 1), _WIDE, "bottleneck_x", cardinality=32, base_width=4, shortcut=True,
              size=(26_309_272, 5_847_932_928), accuracy=(78.516, 94.226)),
    _released("dla102x2", (1, 1, 1, 3, 4, 1), _WIDE, "bottleneck_x", cardinality=64, base_width=4, shortcut=True,
              size=(41_282_200, 9_283_985_408), accuracy=(79.448, 94.654)),
    _released("dla169", (1, 1, 2, 3, 5, 1), _WIDE, "bottleneck", shortcut=True,
              size=(53_389_720, 11_557_560_320), accuracy=(78.702, 94.334)),
    _released("dla60_res2net", (1, 1, 1, 2, 3, 1), _WIDE, "bottle2neck", cardinality=1, base_width=28,
              size=(20_848_072, 4_122_681_344), accuracy=(78.480, 94.204)),
    _released("dla60_res2next", (1, 1, 1, 2, 3, 1), _WIDE, "bottle2neck", cardinality=8, base_width=4,
              size=(17_032_984, 3_458_752_512), accuracy=(78.488, 94.144)),
    # Ours: dla34 at half its width, for small photos and small machines.
    Row("dla34_half", (1, 1, 1, 2, 2, 1), (8, 16, 32, 64, 128, 256), "basic", params=4_068_736, macs=794_642_432),
)
# fmt: on

TABLE: MappingProxyType[str, Row] = MappingProxyType({r.name: r for r in _ROWS})


def row(name: str) -> Row:
    """The row of the network called `name`.

    Raises:
        UnknownNameError: no network has this name; the message carries the nearest names.
    """
    try:
        return TABLE[name]
    except KeyError:
        raise UnknownNameError("network", name, TABLE, see="dla models") from None
