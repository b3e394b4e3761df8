"""Weights of dense networks: the authors' files, model folders, and from one to the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dla
from dla.cli import main
from dla.models import flops
from dla.models.dense import Dense
from dla.weights.identify import task_of
from dla.weights.keys import authors_state, dense_layout, is_dense, shapes_of
from dla.weights.load import load_any, load_dense
from dla.weights.model_folder import ModelConfig, read_config, write_folder
from dla.weights.spec import open_files
from support.authors_segmenter import AuthorsSegmenter
from support.oracle import randomise, relative
from support.recorded import recorded_shapes

CLASSES, RATIO = 3, 8
DEAD = {"base.fc.weight", "base.fc.bias"}


@pytest.fixture(scope="module")
def theirs() -> AuthorsSegmenter:
    torch.manual_seed(0)
    network = AuthorsSegmenter(CLASSES, RATIO)
    randomise(network)
    return network.eval()


@pytest.fixture(scope="module")
def file(theirs: AuthorsSegmenter, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("authors") / "dla34up-camvid.pth"
    torch.save({f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}, path)
    return str(path)


@pytest.mark.parametrize("name", ["dla34", "dla60", "dla102", "dla169"])
def test_names_order_and_shapes_are_those_of_the_authors_files(name: str) -> None:
    wanted = recorded_shapes(f"ucbdrive-{name}up")
    with torch.device("meta"):
        network = Dense.over(dla.create_model(name, num_classes=0), 19, 2, up="authors")
        found = shapes_of(authors_state(network))
    assert list(found.items()) == list(wanted.items())
    assert is_dense(wanted)
    assert dense_layout(wanted) == {"down_ratio": 2, "up": "authors"}


@pytest.mark.parametrize("name", ["dla34", "dla46_c", "dla102"])
@pytest.mark.parametrize("ratio", [2, 4, 8])
@pytest.mark.parametrize("up", ["bilinear", "authors"])
def test_the_layout_is_read_from_the_tensors(name: str, ratio: int, up: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(dla.create_model(name, task="edges", down_ratio=ratio, up=up).state_dict())
    assert dense_layout(shapes) == {"down_ratio": ratio, "up": up}
    assert not is_dense({name.removeprefix("base."): shape for name, shape in shapes.items()})


def test_multiplications_are_those_that_were_counted() -> None:
    """In the authors' code, where two unused projections of 8x8 and 4x4 pixels are computed too."""
    with torch.device("meta"):
        network = dla.create_model("dla34", task="segment", num_classes=19, up="authors")
    unused = 64 * 128 * 8 * 8 + 128 * 256 * 4 * 4
    assert flops.macs(shapes_of(network.state_dict()), (64, 64)) == 446_529_536 - unused


def test_the_authors_file_loads(file: str, theirs: AuthorsSegmenter) -> None:
    assert task_of(open_files(file)) == "segment"
    loaded = load_any(file)
    assert isinstance(loaded.model, Dense)
    config = loaded.config
    assert (config.architecture, config.num_classes, config.task) == ("dla34", CLASSES, "segment")
    assert (config.dla["down_ratio"], config.dla["up"]) == (RATIO, "authors")
    assert set(loaded.report.dropped) >= DEAD
    assert "the classifier of its backbone (base.fc), which was dropped too" in loaded.report.notes[-1]
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert relative(loaded.model.eval()(x), theirs(x)) < 1e-5
    by_name = dla.create_model(file, pretrained=True, task="segment")
    assert torch.equal(by_name.fc[0].weight, theirs.fc[0].weight)


def test_to_a_folder_and_back(file: str, theirs: AuthorsSegmenter, tmp_path: Path) -> None:
    folder, again = tmp_path / "folder", tmp_path / "again.pth"
    assert main(["convert", file, str(folder)]) == 0
    config = read_config(folder)
    assert (config.task, config.dla["down_ratio"], config.dla["up"]) == ("segment", RATIO, "authors")
    assert main(["convert", str(folder), str(again), "--to", "authors"]) == 0
    found, wanted = torch.load(again, weights_only=True), theirs.state_dict()
    assert list(shapes_of(found).items()) == list(shapes_of(wanted).items())
    for name, tensor in load_dense(str(folder)).model.state_dict().items():
        assert torch.equal(tensor, wanted[name])
        assert torch.equal(tensor, found[name])
    AuthorsSegmenter(CLASSES, RATIO).load_state_dict(found, strict=True)


def test_info_and_drawing(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", file, "--format", "json", "--nodes"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["task"], info["architecture"], info["num_classes"]) == ("segment", "dla34", CLASSES)
    assert info["nodes"][0]["name"] == "level2"
    assert any("class names class_0 to class_2 are guesses" in note for note in info["notes"])
    assert main(["draw", file, "-o", str(tmp_path / "drawn.svg")]) == 0
    assert "ida_1" in (tmp_path / "drawn.svg").read_text()


@pytest.mark.parametrize(
    "words", [["predict", "cat.jpg", "--model"], ["features", "cat.jpg", "-o", "f.npz", "--model"]]
)
def test_commands_of_other_tasks(words: list[str], file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, file]) == 2
    assert "is a segmentation network. Use: dla segment" in capsys.readouterr().err


def test_what_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    network = dla.create_model("dla46_c", task="edges", down_ratio=8)
    write_folder(folder, network.state_dict(), ModelConfig("dla46_c", 1, dla={"task": "edges", "down_ratio": 8}))
    with pytest.raises(dla.UsageError, match="Only networks made with up='authors' can be written for it"):
        dla.convert(str(folder), tmp_path / "a.pth", to="authors")
    bare = dla.convert(str(folder), tmp_path / "bare.safetensors").path
    assert load_any(str(bare)).config.task == "edges"
    other = tmp_path / "half"
    half = dla.create_model("dla34_half", task="edges", up="authors")
    write_folder(other, half.state_dict(), ModelConfig("dla34_half", 1, dla={"task": "edges", "up": "authors"}))
    with pytest.raises(dla.UsageError, match="the authors' code has no dla34_half"):
        dla.convert(str(other), tmp_path / "a.pth", to="authors")


def test_another_networks_decoder_is_named(file: str, tmp_path: Path) -> None:
    state = torch.load(file, weights_only=True)
    del state["module.dla_up.ida_0.node_1.0.weight"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(dla.DamagedError, match="1 tensors missing .dla_up.ida_0.node_1.0.weight"):
        load_any(str(tmp_path / "short.pth"))
