"""`dla edges` from the outside; what it shares with `dla segment` is tested there."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.cli import main
from support.photos import crops, jpeg
from support.pixel_models import edge_detector


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dla.cli.dense.load_network", lambda *_: edge_detector(threshold=0.4))
    for name, photo in zip("ab", crops(2), strict=True):
        Path(f"{name}.jpg").write_bytes(jpeg(photo.resize((40, 30))))


def edges(*words: str) -> int:
    return main(["edges", *words, "--model", "here", "-q"])


def test_three_maps_of_each_photo(capsys: pytest.CaptureFixture[str]) -> None:
    assert edges("a.jpg", "gone.jpg", "b.jpg", "-o", "out", "--format", "jsonl") == 1
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["path"] for r in records] == ["a.jpg", "gone.jpg", "b.jpg"]
    for record in (records[0], records[2]):
        assert record["threshold"] == 0.4
        lines = np.asarray(Image.open(Path("out", record["files"]["lines"])))
        assert lines.mean() == record["share"]
        stem = record["path"][0]
        for kind, name in record["files"].items():
            assert name.startswith(f"{stem}-")
            assert name.endswith(f".{kind}.png")
            with Image.open(Path("out", name)) as image:
                assert image.size == (40, 30)


def test_each_format(capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for form in ("table", "json", "csv"):
        assert edges("a.jpg", "gone.jpg", "--threshold", "0.25", "--format", form) == 1
        printed[form] = capsys.readouterr().out
    first, second = json.loads(printed["json"])
    row, failed = csv.DictReader(io.StringIO(printed["csv"]))
    assert {k: float(row[k]) for k in ("width", "height", "threshold", "share")} == {
        k: first[k] for k in ("width", "height", "threshold", "share")
    }
    assert (failed["error_code"], failed["share"]) == (second["error"]["code"], "")
    assert printed["table"] == (
        f"a.jpg\n{100 * first['share']:6.1f} %  on boundaries (threshold 0.25)\n"
        "gone.jpg\n  no answer: there is no such file\n"
    )


def test_a_run_goes_on_with_the_same_threshold_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert edges("a.jpg", "-o", "out") == 0
    assert edges("a.jpg", "b.jpg", "-o", "out", "--resume", "--threshold", "0.9") == 2
    assert "out/records.jsonl was started with threshold" in capsys.readouterr().err
    assert edges("a.jpg", "b.jpg", "-o", "out", "--resume") == 0
    assert capsys.readouterr().out.startswith("b.jpg\n")
    assert len(Path("out/records.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("threshold", ["0.0", "1.5", "nan"])
def test_a_threshold_that_is_no_probability(threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert edges("a.jpg", "--threshold", threshold) == 2
    assert capsys.readouterr().err.startswith(f"dla: threshold is {threshold}")


def test_without_scipy_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert edges("a.jpg") == 3
    assert capsys.readouterr().err == "dla: dla edges needs SciPy: pip install scipy\n"
