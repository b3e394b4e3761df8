"""`dla train`: what a user's slip, a changed file or a small machine leads to. One sentence, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.cli import main
from dla.training.trainer import Trainer
from support import flat_photos
from support.tiny import in_the_table

pytestmark = pytest.mark.slow

SMALL = ["--recipe", flat_photos.PLAIN, "--model", "tiny", "--batch-size", "8", "--epochs", "1", "--input.val-size",
         "32", "--workers", "0", "-q"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with in_the_table():
        yield


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, and a run that is over but for its end, as if it had been killed then; both a second time in kept/."""
    folder = tmp_path_factory.mktemp("room")
    data, run = flat_photos.write(folder / "data", train=8, val=2), folder / "run"
    assert main(["train", str(data), *SMALL, "--output", str(run)]) == 0
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"finished": False}))
    for path in (data, run):
        shutil.copytree(path, folder / "kept" / path.name)
    return folder


def fresh(room: Path, name: str) -> Path:
    shutil.rmtree(room / name)
    return shutil.copytree(room / "kept" / name, room / name)


@pytest.fixture
def data(room: Path) -> Path:
    return fresh(room, "data")


@pytest.fixture
def run(room: Path, data: Path) -> Path:
    return fresh(room, "run")


def said(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["train", *words]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_run_does_not_become_a_class(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data / "train")
    assert "would be taken for a class" in said([".", *SMALL], 2, capsys)
    assert "would be taken for a class" in said([str(data), *SMALL, "--output", "red/run"], 2, capsys)
    assert "would be taken for a class" in said([".", *SMALL, "--find-lr"], 2, capsys)
    assert sorted(path.name for path in (data / "train").iterdir()) == ["blue", "red"]
    monkeypatch.chdir(data)  # beside train/ and val/ it is no class
    assert main(["train", ".", *SMALL]) == 0
    assert json.loads((data / "runs" / "plain-data" / "data.json").read_text())["class_ids"] == ["blue", "red"]


def test_names_that_are_not_utf8(data: Path, tmp_path: Path) -> None:
    (data / "train" / "red" / "0.png").rename(data / "train" / "red" / os.fsdecode(b"\xff.png"))
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", str(data), *SMALL, *output]) == 0
    assert (
        os.fsdecode(b"train/red/\xff.png")
        in json.loads((tmp_path / "run" / "data.json").read_text())["train"]["photos"]
    )
    assert main(["train", str(data), *SMALL, *output]) == 0
    odd = tmp_path / os.fsdecode(b"\xff")
    shutil.copytree(data, odd)
    for _ in range(2):
        assert main(["train", str(odd), *SMALL, "--output", str(tmp_path / "other")]) == 0
    assert json.loads((tmp_path / "other" / "best" / "config.json").read_text())["dla"]["dataset"] == "\ufffd"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--seed", "-1"], "seed is -1. Allowed: 0 to 9223372036854775807"),
        (["--seed", "99999999999999999999999"], "Allowed: 0 to 9223372036854775807"),
        (
            ["--optimizer.betas", "[1.0, 0.999]"],
            "optimizer.betas is [1.0, 0.999]. Allowed: two numbers from 0 to below 1",
        ),
        (["--input.sizes", "{0: []}"], "it needs a positive size from epoch 0 on"),
        (["--batch-size", "1"], "batch_size is 1, so the network sees one photo at a time"),
        (["--optimizer.accumulate", "8"], "the network sees one photo at a time, which at 32 pixels"),
    ],
)
def test_values_that_cannot_be(
    words: list[str], what: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert what in said([str(data), *SMALL, *words, "--output", str(tmp_path / "run")], 2, capsys)
    assert not (tmp_path / "run").exists()


def test_one_photo_at_a_time_can_be_where_the_maps_are_larger(data: Path, tmp_path: Path) -> None:
    words = ["--batch-size", "1", "--input.val-size", "64"]
    assert main(["train", str(data), *SMALL, *words, "--output", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize(
    ("kind", "code", "what"),
    [
        ("archive", 2, "not an array of numbers"),
        ("words", 2, "not an array of numbers"),
        ("empty", 3, "cannot be read"),
    ],
)
def test_scores_that_are_none(
    kind: str, code: int, what: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("scores.npz" if kind == "archive" else "scores.npy")
    if kind == "archive":
        np.savez(path, np.zeros((16, 2)))
    elif kind == "words":
        np.save(path, np.full((16, 2), "high"))
    else:
        path.write_bytes(b"")
    words = ["--distill.scores", str(path), "--output", str(tmp_path / "run")]
    assert what in said([str(data), *SMALL, *words], code, capsys)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
@pytest.mark.parametrize("words", [[], ["--dry-run"], ["--find-lr"]])
def test_too_little_memory(
    error: Exception, words: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "step", step)
    found = said([str(data), *SMALL, *words, "--output", str(tmp_path / "run")], 1, capsys)
    assert found.startswith("dla: not enough memory for batches of 8 photos. Try --optimizer.accumulate 2")


def test_another_runtime_error_is_not_about_memory(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main(["train", str(data), *SMALL, "--output", str(tmp_path / "run")])


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "data.json"])
def test_a_run_without_its_files(name: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).unlink()
    found = said([str(data), *SMALL, "--output", str(run)], 2, capsys)
    assert f"{run} has checkpoints of a run, but {name} is missing" in found


@pytest.mark.parametrize(
    ("text", "what"), [("lr: [", "is not valid YAML"), ("", "is not a recipe"), ("- lr", "is not a recipe")]
)
def test_a_damaged_config(text: str, what: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "config.yaml").write_text(text)
    assert what in said([str(data), *SMALL, "--output", str(run)], 2, capsys)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("run.json", "[]", "run.json is not a JSON object"),
        ("data.json", "5", "data.json is not a JSON object"),
        ("data.json", "{}", "data.json in the run's folder was altered"),
        ("data.json", None, "data.json in the run's folder was altered"),
    ],
)
def test_damaged_facts(
    name: str, text: str | None, what: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is None:
        saved = json.loads((run / name).read_text())
        saved["train"]["targets"][0] = 2  # of two classes
        text = json.dumps(saved)
    (run / name).write_text(text)
    assert what in said([str(data), *SMALL, "--output", str(run)], 2, capsys)


@pytest.mark.parametrize("damage", [b"garbage\n", b"\xff\n", b"[1]\n", b'{"epoch": 1, "lo'])
def test_damaged_figures_are_dropped(damage: bytes, run: Path, data: Path) -> None:
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(damage + b"\n" + whole + damage)
    assert main(["train", str(data), *SMALL, "--output", str(run)]) == 0
    assert (run / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "report.html", "best", "data.json"])
def test_a_folder_with_files_of_others(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / name
    mine.write_text("mine")
    words = [str(data), *SMALL, "--output", str(tmp_path / "mine")]
    said(words, 2, capsys)
    if name == "data.json":
        mine.write_text('{"mine": 1}')
    found = said(words, 2, capsys)
    assert f"{tmp_path / 'mine'} is not the folder of a run, and a run would replace its {name}." in found
    assert mine.read_text() == ('{"mine": 1}' if name == "data.json" else "mine")


def test_stopped_while_it_claimed_its_folder(run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "data.json", tmp_path / "begun")
    assert main(["train", str(data), *SMALL, "--output", str(tmp_path / "begun")]) == 0


def test_an_output_that_is_a_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine")
    found = said([str(data), *SMALL, "--output", str(tmp_path / "run")], 2, capsys)
    assert found == f"dla: {tmp_path / 'run'} is a file. Give --output a new folder, or that of a run"
    assert (tmp_path / "run").read_text() == "mine"


def test_a_linked_table_is_read_as_by_every_verb(data: Path, tmp_path: Path) -> None:
    rows = [f"{path.relative_to(data)},{path.parent.name},{path.parts[-3]}" for path in sorted(data.rglob("*.png"))]
    (tmp_path / "blob").write_text("\n".join(["path,label,split", *rows]))
    (data / "table.csv").symlink_to(tmp_path / "blob")
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", str(data / "table.csv"), *SMALL, *output]) == 0
    assert main(["validate", str(data / "table.csv"), "--model", str(tmp_path / "run" / "best"), "-q"]) == 0


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_that_is_gone(split: str, run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / split).rename(data / "elsewhere")
    (data / "test").mkdir()
    words = [str(data), *SMALL, "--output", str(run)]
    code = 3 if split == "train" else 2
    capsys.readouterr()
    assert main(["train", *words]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_photo_that_breaks_while_the_run_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = data / "val" / "red" / "1.png"
    whole = broken.read_bytes()
    at = whole.index(b"IDAT") + 40
    broken.write_bytes(whole[:at] + bytes(255 - b for b in whole[at : at + 300]) + whole[at + 300 :])
    words = [str(data), *SMALL, "--data.max-unreadable", "0.5", "--output", str(tmp_path / "run")]
    found = said(words, 1, capsys)
    assert str(broken) in found
    assert "Replace it with an intact photo, and the same command continues" in found
    Image.open(data / "val" / "red" / "0.png").save(broken)
    assert main(["train", *words]) == 0
