"""The blocks of the page on aggregation that the page alone cannot run: they stand on timm."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import dla
from support.oracle import timm
from support.run_page import blocks

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "aggregation.md"
BLOCKS = [text for language, text in blocks(PAGE) if language == ""]


def run(text: str) -> dict[str, Any]:
    """The names after a block; `pretrained=True` is heard, but nothing is downloaded."""

    def create_model(name: str, pretrained: bool) -> nn.Module:
        assert pretrained
        return timm.create_model(name)

    names: dict[str, Any] = {"dla": dla, "timm": SimpleNamespace(create_model=create_model)}
    exec(compile(text, PAGE.name, "exec"), names)
    return names


def test_the_blocks_of_timm() -> None:
    own_block, grafted = BLOCKS
    assert run(own_block)["model"].eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    net = run(grafted)["net"]
    assert [path for path, part in net.named_modules() if isinstance(part, dla.HDA)] == ["stages.2.blocks"]
