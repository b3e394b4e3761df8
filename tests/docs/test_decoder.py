"""The blocks of the decoder's page that the page alone cannot run: other packages, and a file of the authors'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dla
from dla.cli import main
from dla.weights.keys import authors_state
from support import oracle  # makes timm and torchvision importable
from support.run_page import blocks

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "decoder.md"
BLOCKS = [text for language, text in blocks(PAGE) if language in ("", "bash")]


def run(naming: str) -> dict[str, Any]:
    """The names that the first block of Python has made in which `naming` occurs."""
    text = next(block for block in BLOCKS if naming in block and not block.startswith("dla "))
    names: dict[str, Any] = {"dla": dla, "timm": oracle.timm}
    exec(compile(text, f"{PAGE.name}, {naming}", "exec"), names)
    return names


def test_no_block_is_forgotten() -> None:
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
def test_over_another_package(package: str) -> None:
    net = run(f"DLAUp.over({package}" if package == "timm" else package)["net"].eval()
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 65, 100)).shape == (1, net.channels, 65, 100)


def test_a_dense_network_over_another_package() -> None:
    net = run("Dense.over(timm")["net"].eval()
    with torch.inference_mode():
        assert net(torch.randn(1, 3, 65, 100)).shape == (1, 11, 65, 100)


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

    (tmp_path / "classes.txt").write_text("".join(f"class {k}\n" for k in range(19)))
    commands = next(block for block in BLOCKS if block.startswith("dla ")).splitlines()
    for command in commands:
        if not command.startswith("dla segment"):  # its photo is the reader's
            assert main(command.split()[1:]) == 0
    again = torch.load("again.pth", weights_only=True)
    assert again.keys() == file.keys()
    assert len(file) == 369
    unused = {name for name in file if ".project." in name or name.startswith("base.fc.")}
    assert all(torch.equal(again[name], file[name]) for name in set(file) - unused)
    assert {name.partition(".project.")[0] for name in file if not torch.equal(again[name], file[name])} <= {
        "base.level3", "base.level4", "base.fc.weight", "base.fc.bias",
    }  # fmt: skip
