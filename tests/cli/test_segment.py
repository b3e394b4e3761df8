"""`dla segment` from the outside: records on standard output, files in a folder, and runs that go on."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.cli import main
from support.photos import crops, jpeg
from support.pixel_models import segmenter


@pytest.fixture(autouse=True)
def _pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dla.cli.dense.load_network", lambda *_: segmenter())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Four inputs, the second one missing, and two of one name."""
    monkeypatch.chdir(tmp_path)
    for path, photo in zip(("in/a.jpg", "in/b.jpg", "other/a.jpg"), crops(3), strict=True):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(jpeg(photo.resize((24, 18))))
    return ["in/a.jpg", "gone.jpg", "in/b.jpg", "other/a.jpg"]


def segment(*words: str) -> int:
    return main(["segment", *words, "--model", "here", "-q"])


def test_each_input_has_one_record_in_each_format(desk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for form in ("table", "json", "jsonl", "csv"):
        assert segment(*desk, "--format", form) == 1
        printed[form] = capsys.readouterr().out
    records = json.loads(printed["json"])
    assert records == [json.loads(line) for line in printed["jsonl"].splitlines()]
    assert [r["path"] for r in records] == desk
    assert records[1]["error"]["code"] == "not_found"
    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    for record, row in zip(records, rows, strict=True):
        assert (row["path"], row["error_code"]) == (record["path"], record.get("error", {}).get("code", ""))
        for c in record.get("classes", []):
            assert float(row[f"share_{c['class_id']}"]) == c["share"]
            assert [int(row[f"{side}_{c['class_id']}"]) for side in ("left", "top", "right", "bottom")] == c["box"]
            assert f"{100 * c['share']:.1f} %  {c['label']}" in " ".join(printed["table"].split(" ")).replace(
                "  " * 3, " "
            )
    assert "gone.jpg\n  no answer: there is no such file\n" in printed["table"]
    assert "files" not in records[0]


def test_the_folder_has_a_mask_and_an_overlay_of_each_photo(
    desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(*desk, "-o", "out", "--format", "jsonl") == 1
    printed = capsys.readouterr().out
    assert printed == Path("out/records.jsonl").read_text()
    records = [json.loads(line) for line in printed.splitlines()]
    names = {name for record in records for name in record.get("files", {}).values()}
    assert len(names) == 6
    assert {path.name for path in Path("out").iterdir()} == names | {"records.jsonl", "records.jsonl.run.json"}
    for path, record in zip(desk, records, strict=True):
        if "files" in record:
            mask = np.asarray(Image.open(Path("out", record["files"]["mask"])))
            assert (mask == np.asarray(Image.open(path)).argmax(2)).all()


def everything(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("layout", ["files", "voc"])
def test_a_run_that_was_cut_off_anywhere_goes_on(
    desk: list[str], layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segment(*desk, "-o", "whole", "--layout", layout, "--coco", "whole.json") == 1
    records = Path("whole/records.jsonl").read_bytes()
    for size in (0, len(records), *random.Random(0).sample(range(len(records)), 5)):
        assert segment(*desk[:3], "-o", "part", "--layout", layout, "--force") == 1
        Path("part/records.jsonl").write_bytes(records[:size])
        for line in records[:size].splitlines(keepends=True):  # what has a record has its files, too
            if line.endswith(b"\n"):
                for name in json.loads(line).get("files", {}).values():
                    Path("part", name).write_bytes(Path("whole", name).read_bytes())
        capsys.readouterr()
        assert (
            segment(*desk, "-o", "part", "--layout", layout, "--coco", "part.json", "--resume", "--format", "jsonl")
            == 1
        )
        assert records[records[:size].rfind(b"\n") + 1 :].decode() == capsys.readouterr().out
        assert everything("part") == everything("whole")
        assert Path("part.json").read_bytes() == Path("whole.json").read_bytes()


def test_files_and_photos_above_a_limit_are_refused(desk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for limit in (("--max-megabytes", "0.000001"), ("--max-megapixels", "0.000001")):
        assert segment("in", *limit, "--format", "jsonl") == 1
        codes = [json.loads(line)["error"]["code"] for line in capsys.readouterr().out.splitlines()]
        assert codes
        assert set(codes) == {"too_large"}


def test_other_settings_do_not_go_on(desk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert segment("in", "-o", "out") == 0
    before = everything("out")
    for words, message in (
        (["--size", "12"], 'out/records.jsonl was started with size "trained", and this is 12.'),
        (["--probabilities"], "was started with probabilities false, and this is true"),
        (["--layout", "voc"], 'was started with layout "files", and this is "voc"'),
        (["other"], "Give the same inputs in the same order"),
    ):
        inputs = [] if words == ["other"] else ["in"]
        assert segment(*inputs, *words, "-o", "out", "--resume") == 2
        assert message in capsys.readouterr().err
    assert everything("out") == before
    Path("out/records.jsonl").write_text('{"schema": "dla.predict/1", "path": "in/a.jpg"}\n')
    assert segment("in", "-o", "out", "--resume") == 2
    assert "out/records.jsonl, line 1: this is not a record of dla segment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume"], "--resume needs a folder. Give --output DIR"),
        (["--probabilities"], "--probabilities needs a folder. Give --output DIR"),
        (["--layout", "voc"], "--layout needs a folder. Give --output DIR"),
        (["--layout", "voc", "--probabilities", "-o", "x"], "--layout voc has no place for --probabilities"),
        (["-o", "x", "--resume", "--force"], "--resume continues --output, and --force replaces it. Give one of them"),
        (["-o", "in/a.jpg"], "--output in/a.jpg is a file. Give a folder"),
        (["-o", "in"], "--output in is in in, which is an input. Give a folder outside of it"),
        (["-o", "in/masks"], "--output in/masks is in in, which is an input"),
        (["-o", "done"], "done/records.jsonl exists already: --resume continues it, --force replaces it"),
        (["--coco", "gone/c.json"], "--coco gone/c.json: there is no folder gone"),
        (["--coco", "in/a.jpg"], "in/a.jpg exists already: --force replaces it"),
        (["--coco", "c.json", "--summary", "c.json"], "--coco and --summary are both c.json. Give two files"),
        (["--size", "big"], "size is big. Allowed: trained, native, or the short side in pixels"),
        (["--size", "0"], "size is 0. Allowed: trained, native"),
        (["--tile", "100"], "--tile is 100. Allowed: 512 to 65,536"),
        (["--format", "xml"], "format is xml. Allowed: table, json, jsonl, csv"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], message: str, desk: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("done").mkdir()
    Path("done/records.jsonl").write_text("{}\n")
    before = everything(".")
    assert segment("in", *words) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""
    assert everything(".") == before


def test_without_a_built_in_network_a_model_must_be_named(desk: list[str], capsys: pytest.CaptureFixture[str],
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("dla.cli.dense.shipped_names", lambda: ["tiny200"])
    for command, name in (("segment", "camvid"), ("edges", "bsds")):
        assert main([command, "in"]) == 3
        assert capsys.readouterr().err == (
            f"dla: this installation does not have shipped:{name}, the network that is used without --model. "
            f"Give --model FOLDER; dla train DATA --task {command} makes one\n"
        )


def test_a_full_disk_ends_the_run_in_a_sentence(desk: list[str], capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "out/a.mask.png")

    monkeypatch.setattr("dla.inference.segment_files.write_files", full)
    assert segment("in", "-o", "out") == 1
    assert capsys.readouterr().err == "dla: out/a.mask.png: No space left on device\n"
    assert Path("out/records.jsonl").read_text() == ""


def test_the_summary_counts(desk: list[str]) -> None:
    assert segment(*desk, "--summary", "s.json", "--max-failed", "1") == 0
    summary = json.loads(Path("s.json").read_text())
    assert (summary["command"], summary["total"], summary["errors"]) == ("segment", 4, {"not_found": 1})
