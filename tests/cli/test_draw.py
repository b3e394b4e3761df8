"""`dla draw`: the file that is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from huggingface_hub import constants
from PIL import Image

import dla
from dla.cli import main
from dla.weights.spec import shipped

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, an empty cache, and no way to any server."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *to: pytest.fail(f"connects to {to[1:]}"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def names(path: Path) -> list[str]:
    return sorted(found.name for found in path.iterdir())


def words_in(svg: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_ending_tells_the_kind_of_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", "dla34", "-o", "tree.svg"]) == 0
    assert main(["draw", "dla34.in1k", "--output", "tree.PNG"]) == 0
    assert capsys.readouterr() == ("", "")
    assert names(folder) == ["tree.PNG", "tree.svg"]
    with Image.open("tree.PNG") as image:
        assert image.format == "PNG"
    dla.draw("dla34", folder / "again.svg")
    dla.draw(dla.create_model("dla34"), "model.svg")
    assert Path("again.svg").read_bytes() == Path("model.svg").read_bytes() == Path("tree.svg").read_bytes()


def test_the_picture_in_the_docs_is_todays() -> None:
    dla.draw("dla34", "dla34.svg")
    assert (ROOT / "docs" / "pictures" / "dla34.svg").read_bytes() == Path("dla34.svg").read_bytes()


def test_a_folder_a_file_and_the_default(folder: Path) -> None:
    shutil.copytree(shipped("tiny200"), "mine & <co>\x01\n")
    shutil.copy(shipped("tiny200") / "model.safetensors", "bare.safetensors")
    said = {}
    for model in ([], ["./mine & <co>\x01\n"], ["bare.safetensors"]):
        assert main(["draw", *model, "-o", "tree.svg"]) == 0
        assert main(["draw", *model, "-o", "tree.png"]) == 0
        *others, title, about, _ = words_in(folder / "tree.svg")
        said[title] = about, "200 classes" in others
    side = json.loads((shipped("tiny200") / "config.json").read_text())["pretrained_cfg"]["input_size"][1]
    fact = f"dla34_half, 3.9 M parameters, {0.795 * (side / 224) ** 2:.2f} GMACs at {side}x{side}", True
    of_file = "dla34_half, 3.9 M parameters, 0.79 GMACs at 224x224", True
    assert said == {"shipped:tiny200": fact, "mine & <co>??": fact, "bare.safetensors": of_file}
    assert names(folder) == ["bare.safetensors", "mine & <co>\x01\n", "tree.png", "tree.svg"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["dla34"], 2, "--output is missing. Give a file that ends in .svg or .png"),
        (["dla34", "-o", "tree.gif"], 2, "--output is tree.gif. Allowed: a file that ends in .svg or .png"),
        (["dla34", "-o", "tree"], 2, "--output is tree. Allowed: a file that ends in .svg or .png"),
        (["dla35", "-o", "tree.svg"], 2, 'no network is called "dla35". Nearest: dla34'),
        (["none.pth", "-o", "tree.svg"], 3, "none.pth does not exist"),
        (["dla34", "-o", "none/tree.svg"], 2, "--output none/tree.svg: there is no folder none. Create it, or give"),
    ],
)
def test_errors_are_one_sentence_and_leave_nothing(
    words: list[str], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert names(folder) == []


def test_home_and_links(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "link.svg").symlink_to("tree.svg")
    assert main(["draw", "dla34", "--output=~/link.svg"]) == 0
    assert (folder / "link.svg").is_symlink()
    assert (folder / "tree.svg").read_text().startswith("<svg")
