"""The blocks of the decoder's page that the page alone cannot run: other packages, and a file of the authors'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dla
from dla.weights.keys import authors_state
from support import oracle  # noqa: F401  makes timm and torchvision importable
from support.run_page import blocks

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "decoder.md"
BLOCKS = [text for language, text in blocks(PAGE) if language == ""]


def run(naming: str) -> dict[str, Any]:
    """The names that the one block has made in which `naming` occurs."""
    (text,) = (block for block in BLOCKS if naming in block)
    names: dict[str, Any] = {}
    exec(compile(text, f"{PAGE.name}, {naming}", "exec"), names)
    return names


def test_no_block_is_forgotten() -> None:
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
def test_over_another_package(package: str) -> None:
    net = run(package)["net"].eval()
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 65, 100)).shape == (1, net.channels, 65, 100)


def test_a_file_of_the_authors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = dla.DLAUp.over(dla.create_model("dla34"), up="authors")
    file = {f"base.{name}": t for name, t in authors_state(dla.create_model("dla34")).items()}
    file |= {f"dla_up.{name}": t for name, t in theirs.dla_up.state_dict().items()}
    file |= {
        "fc.0.weight": torch.zeros(19, 32, 1, 1),
        "fc.0.bias": torch.zeros(19),
        "up.weight": torch.ones(19, 1, 4, 4),
    }
    torch.save(file, tmp_path / "dla34up.pth")
    monkeypatch.chdir(tmp_path)

    net = run("dla34up.pth")["net"]
    loaded = {f"base.{name.removeprefix('module.')}": t for name, t in net.backbone.state_dict().items()}
    loaded |= {f"dla_up.{name}": t for name, t in net.dla_up.state_dict().items()}
    assert all(torch.equal(t, file[name]) for name, t in loaded.items())
    assert len(file) == 369
    left = set(file) - set(loaded)
    assert {name.partition(".project.")[0] for name in left} == {
        "base.level3", "base.level4", "base.fc.weight", "base.fc.bias", "fc.0.weight", "fc.0.bias", "up.weight",
    }  # fmt: skip
