"""The listing: instant, in a natural order, and honest about what has no weights."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dla.errors import UnknownNameError
from dla.models.registry import (
    TABLE,
    PretrainedCfg,
    get_pretrained_cfg,
    get_pretrained_cfg_value,
    list_models,
    list_pretrained,
)


def test_numbers_are_sorted_as_numbers() -> None:
    names = list_models()
    assert set(names) == set(TABLE)
    assert names.index("dla60") < names.index("dla60_res2net") < names.index("dla60x") < names.index("dla102")


def test_a_network_without_released_weights() -> None:
    assert "dla34_half" in list_models("dla34*", include_tags=True)
    assert not [name for name in list_pretrained() if "half" in name]
    cfg = get_pretrained_cfg("dla34_half")
    assert cfg is not None
    assert not cfg.has_weights
    with pytest.raises(UnknownNameError, match=r'^no released set of weights is called "dla34_half.in1k"\.$'):
        get_pretrained_cfg("dla34_half.in1k")


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError, match=r'^no released set of weights is called "dla60\.in2k"\. Nearest: dla60\.in1k'
    ):
        get_pretrained_cfg("dla60.in2k")
    with pytest.raises(UnknownNameError, match=r'^no network is called "dla61"\. Nearest: dla60'):
        get_pretrained_cfg_value("dla61", "mean")


def test_records_are_copies() -> None:
    one, other = get_pretrained_cfg("dla34"), get_pretrained_cfg("dla34")
    assert isinstance(one, PretrainedCfg)
    assert one == other
    one.num_classes = 7
    assert other != one


def test_listing_needs_no_torch() -> None:
    code = "import sys, dla; dla.list_models('dla*'); dla.get_pretrained_cfg('dla34'); print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
