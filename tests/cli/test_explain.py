"""`dla explain` from the outside: records on standard output, heat maps in a folder, and runs that go on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dla
from dla.cli import main
from support.photos import crops, jpeg


@pytest.fixture(scope="module")
def classifier() -> dla.Classifier:
    return dla.load(engine="openvino")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classifier: dla.Classifier) -> list[str]:
    """Four inputs, the second one missing, and two of one name; every command finds the same open network."""
    monkeypatch.setattr("dla.cli.explain.load_classifier", lambda *_: classifier)
    monkeypatch.chdir(tmp_path)
    for path, photo in zip(("in/a.jpg", "in/b.jpg", "other/a.jpg"), crops(3), strict=True):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(jpeg(photo))
    return ["in/a.jpg", "gone.jpg", "in/b.jpg", "other/a.jpg"]


def explain(*words: str) -> int:
    return main(["explain", *words])


def test_each_input_has_one_record_in_each_format(desk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for form in ("table", "json", "jsonl", "csv"):
        assert explain(*desk, "--format", form, "--against", "teapot", "-q") == 1
        printed[form] = capsys.readouterr().out
    records = json.loads(printed["json"])
    assert records == [json.loads(line) for line in printed["jsonl"].splitlines()]
    assert [r["path"] for r in records] == desk
    assert records[1]["error"]["code"] == "not_found"
    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    for record, row in zip(records, rows, strict=True):
        assert (row["path"], row["error_code"]) == (record["path"], record.get("error", {}).get("code", ""))
        if "error" not in record:
            for name in ("width", "height", "index", "class_id", "label", "probability", "logit", "at", "method"):
                assert row[name] == str(record[name])
            assert [float(row["peak_x"]), float(row["peak_y"])] == record["peak"]
            assert row["against_class_id"] == record["against"]["class_id"] == "n04398044"
    lines = printed["table"].splitlines()
    x, y = records[0]["peak"]
    assert lines[0] == "in/a.jpg"
    assert lines[1].endswith(f"{records[0]['class_id']}   mostly at {x:.0f},{y:.0f}, rather than teapot")
    assert lines[2:4] == ["gone.jpg", "  no answer: there is no such file"]


def test_the_folder_has_a_heat_map_of_each_photo(desk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(*desk, "-o", "out", "--format", "jsonl", "--class", "espresso") == 1
    printed, said = capsys.readouterr()
    assert printed == Path("out/records.jsonl").read_text()
    records = [json.loads(line) for line in printed.splitlines()]
    names = {record["files"]["overlay"] for record in records if "error" not in record}
    assert len(names) == 3
    assert {path.name for path in Path("out").iterdir()} == names | {"records.jsonl", "records.jsonl.run.json"}
    assert all(record["label"] == "espresso" for record in records if "error" not in record)
    assert "4 photos: 3 answered, 1 failed (1 not_found; see out)" in said
    with Image.open(Path("out", records[0]["files"]["overlay"])) as overlay, Image.open("in/a.jpg") as photo:
        assert overlay.width >= photo.width
        assert overlay.height > photo.height
        assert np.asarray(overlay)[: photo.height].std() > 10


def test_a_run_that_was_cut_off_goes_on(desk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(*desk, "-o", "whole", "-q") == 1
    records = Path("whole/records.jsonl").read_bytes()
    assert explain(*desk[:3], "-o", "part", "-q") == 1
    Path("part/records.jsonl").write_bytes(records[: len(records) // 2])
    for words, message in (
        (["--class", "teapot"], 'was started with class missing, and this is "teapot"'),
        (["--at", "level4"], 'was started with at "level5", and this is "level4"'),
    ):
        assert explain(*desk, "-o", "part", "--resume", *words) == 2
        assert message in capsys.readouterr().err
    assert explain(*desk, "-o", "part", "--resume", "-q") == 1
    assert {p.name: p.read_bytes() for p in Path("part").iterdir()} == {
        p.name: p.read_bytes() for p in Path("whole").iterdir()
    }
    assert explain(*desk, "-o", "part") == 2
    assert "part/records.jsonl exists already: --resume continues it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--class", "tepot"], 'no class of this network is called "tepot". Nearest: teapot'),
        (["--at", "level9"], 'no node of this network is called "level9"'),
        (["--at", "pre_logits"], "pre_logits has no places to show"),
        (["--resume"], "--resume needs a folder. Give --output DIR"),
        (["-o", "in"], "in is in in, which is an input"),
        (["-o", "in/a.jpg"], "--output in/a.jpg is a file. Give a folder"),
    ],
)
def test_wrong_usage_is_one_sentence(
    desk: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain("in", *words) == 2
    out, said = capsys.readouterr()
    assert message in said
    assert not out
    assert sorted(p.name for p in Path("in").iterdir()) == ["a.jpg", "b.jpg"]
