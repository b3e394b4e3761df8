"""Model folders that are fine networks, but not for photos, or not for their classes: said in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dla
from dla.cli import main
from dla.models.build import build
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import CHELSEA

pytestmark = pytest.mark.slow

SIZE = {"input_size": [3, 64, 64]}


def folder(path: Path, ours: dict[str, Any] | None = None, cfg: dict[str, Any] = SIZE, **args: Any) -> str:
    net = build("dla46x_c", **{"num_classes": 2, **args})
    options = {key: value for key, value in args.items() if key != "num_classes"}
    write_folder(path, net.state_dict(), ModelConfig("dla46x_c", net.num_classes, model_args=options,
                                                     pretrained_cfg=cfg, dla=ours or {}))  # fmt: skip
    return str(path)


@pytest.mark.parametrize(
    ("args", "said", "width"),
    [
        ({"num_classes": 0}, "has no classes, so it cannot classify. Try: dla features", 256),
        ({"global_pool": ""}, "has no pooling, so it cannot classify. Try: dla features --at level5", None),
    ],
)
def test_features_without_classes(
    tmp_path: Path, args: dict[str, Any], said: str, width: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder(tmp_path / "m", **args)
    assert main(["predict", str(CHELSEA), "--model", path]) == 2
    assert capsys.readouterr().err == f"dla: {path} {said}\n"
    out = tmp_path / "f.npz"
    at = "pre_logits" if width else "level5"
    assert main(["features", str(CHELSEA), "--model", path, "--at", at, "--output", str(out), "-q"]) == 0
    shape = np.load(out)["features"].shape
    assert shape == ((1, width) if width else (1, 256, 2, 2))
    if width is None:
        assert main(["features", str(CHELSEA), "--model", path, "--output", str(out), "--force"]) == 2
        assert 'no node of this network is called "pre_logits"' in capsys.readouterr().err
    assert dla.create_model(path, pretrained=True).num_classes == args.get("num_classes", 2)


@pytest.mark.parametrize("cfg", [{}, SIZE, {"input_size": [4, 64, 64]}])
def test_other_channels_than_a_photos(tmp_path: Path, cfg: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "m", cfg=cfg, in_chans=4)
    for words in (["predict", str(CHELSEA)], ["features", str(CHELSEA), "--output", str(tmp_path / "f.npz")]):
        assert main([*words, "--model", path]) == 2
        assert capsys.readouterr().err == f"dla: {path} takes 4 channels, photos have 3. Try: dla.create_model\n"
    assert dla.create_model(path, pretrained=True).in_chans == 4
    assert main(["info", path]) == 0


@pytest.mark.parametrize(("ours", "code"), [(None, 0), ({}, 0), ({"exif": "ignore"}, 0), ([1], 3), ({"exif": 3}, 3)])
def test_our_part_of_the_preprocessing(
    tmp_path: Path, ours: Any, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"dla": {"preprocessing": ours}}))
    for words in (["predict", str(CHELSEA), "--model", path, "-q"], ["info", path]):
        assert main(words) == code
        err = capsys.readouterr().err
        assert len(err.splitlines()) == (code > 0)


def test_a_text_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for broken in ({"label_names": ["a", "\ud800"]}, {"label_descriptions": {"a": "\ud800"}}, {"\ud800": 1}):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | broken))
        for words in (["predict", str(CHELSEA), "--model", path], ["info", path]):
            assert main(words) == 3
            out, err = capsys.readouterr()
            assert (out, len(err.splitlines())) == ("", 1)
            assert "config.json is not valid JSON: " in err
