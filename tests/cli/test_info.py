"""`dla info`: all about one network, from its files or from the table, never from a server."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

import dla
from dla.cli import main
from dla.images.labels import imagenet_classes
from dla.models.build import build
from dla.models.registry import TABLE
from dla.training.recipe_files import recipe_from
from dla.types import DEFAULT_MODEL
from dla.weights.convert import convert
from dla.weights.spec import resolve_source, shipped
from support.oracle import timm
from support.released import put_in_cache, released

NODES_OF_DLA60 = {  # name: (channels, stride, channels of what it takes)
    "level2": (128, 4, [128, 128]),
    "level3.tree1": (256, 8, [256, 256]),
    "level3": (256, 8, [256, 256, 128, 256]),
    "level4.tree1.tree1": (512, 16, [512, 512]),
    "level4.tree1": (512, 16, [512, 512, 512]),
    "level4.tree2.tree1": (512, 16, [512, 512]),
    "level4": (512, 16, [512, 512, 256, 512, 512]),
    "level5": (1024, 32, [1024, 1024, 512]),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to any server."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *to: pytest.fail(f"connects to {to[1:]}"))
    return tmp_path / "hub"


def record(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["info", *words, "--format", "json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema"] == "dla.info/1"
    return found


def table(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["info", *words]) == 0
    out = capsys.readouterr().out
    assert all(len(line) <= 100 or "/" in line for line in out.splitlines()), "only a path may be longer"
    return out


def test_without_a_name_it_is_the_default_of_predict(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys)
    assert found["model"] == DEFAULT_MODEL
    config = json.loads((shipped("tiny200") / "config.json").read_text())
    assert [c["class_id"] for c in found["classes"]] == config["label_names"]
    assert found["num_classes"] == len(found["classes"]) == 200
    assert found["classes"][0] == {"class_id": "n01443537", "label": "goldfish"}
    assert found["preprocessing"]["input_size"] == found["input_size"]
    assert found["input_size"] == config["pretrained_cfg"]["input_size"]
    for ours, key in (("license", "license"), ("results", "results"), ("recipe", "recipe"), ("dataset", "dataset")):
        assert found[ours] == config["dla"][key]
    weights = shipped("tiny200") / "model.safetensors"
    assert found["weights"] == {
        "state": "shipped", "size_bytes": weights.stat().st_size, "estimated": False, "path": str(weights),
    }  # fmt: skip
    assert found["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    out = table(capsys)
    for said in (
        "dla34_half",
        "200: goldfish",
        "{1}x{2}".format(*found["input_size"]),
        "non-commercial",
        "Tiny ImageNet",
        f"top-1 {100 * config['dla']['results']['top1']:.1f} %",
        found["sha256"],
    ):
        assert said in out


def test_a_recipe_is_what_differs_from_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = json.loads((shipped("tiny200") / "config.json").read_text())["dla"]["recipe"]
    line = " ".join(table(capsys).split()).partition(" recipe ")[2].partition(" licence ")[0]
    assert line.endswith("; the rest by default (--recipe prints all)")
    assert f"epochs {stored['epochs']}, " in line
    assert f"augment.margin {stored['augment']['margin']}, " in line
    assert "cutmix" not in line
    assert "None" not in line
    assert main(["info", "--recipe"]) == 0
    (tmp_path / "mine.yaml").write_text(printed := capsys.readouterr().out)
    assert yaml.safe_load(printed) == stored
    recipe = recipe_from(str(tmp_path / "mine.yaml"), {})
    assert (recipe.epochs, recipe.augment.margin) == (stored["epochs"], stored["augment"]["margin"])


def test_weights_without_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "dla34", "--recipe"]) == 3
    assert capsys.readouterr().err == "dla: dla34.in1k has no recipe: its files do not say how it was trained\n"


def test_variables_for_predict(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLA_MODEL", "dla60")
    monkeypatch.setenv("DLA_FORMAT", "jsonl")
    monkeypatch.setenv("DLA_NODES", "maybe")
    assert record(capsys)["architecture"] == "dla60"
    assert record(capsys, "dla34")["architecture"] == "dla34"
    assert table(capsys).startswith("dla60.in1k\n")


@pytest.mark.parametrize("name", TABLE)
def test_what_is_not_here_is_told_from_the_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    found, r = record(capsys, name), TABLE[name]
    assert (found["params"], found["macs"], found["architecture"]) == (r.params, r.macs, name)
    out = table(capsys, name)
    if r.tag is None:
        assert (found["model"], found["weights"]["state"], found["classes"]) == (name, "none", [])
        assert "none were released" in out
        return
    assert found["model"] == f"{name}.in1k"
    assert found["weights"] == {
        "state": "to download", "size_bytes": 4 * r.params, "estimated": True, "path": None,
    }  # fmt: skip
    assert found["sha256"] is found["origin"] is None
    assert found["published"] == {"top1": r.top1, "top5": r.top5}
    assert found["license"] == r.license
    assert [c["class_id"] for c in found["classes"]] == [c.class_id for c in imagenet_classes()]
    assert f"to download, about {4 * r.params / 1e6:.1f} MB: dla pull {name}" in out
    assert ("No licence is stated" in " ".join(out.split())) == ("res2" in name)
    theirs = timm.get_pretrained_cfg(name)
    ours = found["preprocessing"]
    assert tuple(ours["input_size"]) == theirs.input_size
    assert (ours["interpolation"], ours["crop_pct"]) == (theirs.interpolation, theirs.crop_pct)
    assert (tuple(ours["mean"]), tuple(ours["std"])) == (theirs.mean, theirs.std)


def test_what_is_cached_is_read(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put_in_cache(cache, "dla46x_c")
    for name in ("dla46x_c", "dla46x_c.in1k", "hf-hub:timm/dla46x_c.in1k"):
        found = record(capsys, name)
        assert found["model"] == "dla46x_c.in1k"
        assert found["weights"]["state"] == "cached"
        assert found["weights"]["path"] == str(path)
        assert found["sha256"] == hashlib.sha256(released("dla46x_c")["model.safetensors"]).hexdigest()
        assert found["origin"] == f"timm/dla46x_c.in1k@{'0123456789' * 4}"
        assert found["license"] == "bsd-3-clause"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["info", "dla46x_c"]) == 3
    assert "truncated or damaged" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_a_model_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(shipped("tiny200"), "dla34")  # a folder that is called like a network
    convert(DEFAULT_MODEL, "bare.pth")
    for given, path in (
        ("./dla34", tmp_path / "dla34"),
        ("local-dir:dla34", tmp_path / "dla34"),
        ("bare.pth", tmp_path / "bare.pth"),
    ):
        found = record(capsys, given)
        assert found["model"] == str(path)
        assert found["weights"]["state"] == "here"
        assert resolve_source(found["model"]).where == str(path)
        assert dla.load(found["model"]).config.architecture == "dla34_half"
    out = table(capsys, "bare.pth")
    assert "not stated in its files" in out
    assert "class_0, class_1" in out


def test_every_model_key_is_a_name_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    for name in (DEFAULT_MODEL, "dla60", "dla60.in1k"):
        found = record(capsys, name)
        assert record(capsys, found["model"]) == found
        resolve_source(found["model"])


def test_a_network_that_takes_no_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grey.pth"
    torch.save(build("dla46_c", in_chans=1, num_classes=0).state_dict(), path)
    found = record(capsys, str(path))
    assert found["preprocessing"] is None
    assert (found["input_size"], found["classes"]) == ([1, 224, 224], [])
    assert "preprocessing" not in table(capsys, str(path))


def test_a_config_that_says_odd_things(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(shipped("tiny200"), folder)
    config = json.loads((folder / "config.json").read_text())
    assert "output stride" not in table(capsys, str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"model_args": {"output_stride": 16}}))
    assert record(capsys, str(folder))["notes"] == ["output stride 16 instead of 32, which timm cannot read"]
    assert "output stride 16 instead of 32" in table(capsys, str(folder))
    for odd in (None, 3, "text", ["a"], {"top1": "high", "deep": {"er": [1, 2]}}):
        config["dla"] |= dict.fromkeys(("recipe", "results", "license", "dataset"), odd)
        (folder / "config.json").write_text(json.dumps(config))
        found = record(capsys, str(folder))
        assert found["recipe"] == found["results"] == (odd if isinstance(odd, dict) else None)
        assert found["license"] == found["dataset"] == (odd if isinstance(odd, str) else None)
        out = table(capsys, str(folder))
        assert ("deep.er [1, 2]" in out) == isinstance(odd, dict)


def test_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "dla60", "--nodes")["nodes"]
    with torch.device("meta"):
        theirs = timm.create_model("dla60")
    channels = {"level3.downsample": 128, "level4.downsample": 256, "level5.downsample": 512}
    for node in found:
        width, stride, taken = NODES_OF_DLA60[node["name"]]
        assert (node["channels"], node["stride"]) == (width, stride)
        assert [channels.get(name, width) for name in node["inputs"]] == taken
        for name in node["inputs"]:
            theirs.get_submodule(name)
    assert [node["name"] for node in found] == list(NODES_OF_DLA60)
    out = table(capsys, "dla60", "--nodes")
    for name in NODES_OF_DLA60:
        assert f"\n{name} " in out
    assert "nodes" not in record(capsys, "dla60")


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("dla61", 2, 'no network is called "dla61". Nearest: dla60'),
        ("hf-hub:me/mine", 3, "me/mine is not in the cache ("),
        ("hf-hub:me/mine", 3, "Try: dla pull hf-hub:me/mine"),
        ("shipped:tiny", 2, 'no shipped network is called "tiny". Nearest: tiny200'),
        ("gone.pth", 3, "gone.pth does not exist"),
    ],
)
def test_wrong_names(name: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name]) == code
    out, err = capsys.readouterr()
    assert said in err
    assert (out, len(err.splitlines())) == ("", 1)


def test_from_python() -> None:
    found = dla.info("dla34", nodes=True)
    assert isinstance(found, dla.ModelInfo)
    assert [node["name"] for node in found.nodes or ()][-1] == "level5"
