"""`dla data check` on the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.cli import main
from support.photos import crops, jpeg


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes with nothing wrong."""
    for i, crop in enumerate(crops(12)):
        path = tmp_path / ("val" if i > 7 else "train") / ("rose" if i % 2 else "tulip") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(crop))
    return tmp_path


def test_photos_that_are_fit_exit_0(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{data}: 12 photos in 2 classes, train 8, val 4"
    assert lines[2].split() == ["train", "4", "in", "every", "class"]
    assert lines[-1] == "Nothing was found that would hurt a run."


def test_without_imagehash_the_rest_is_checked(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Identical pixels are found; the same picture in another quality is not, and that is said."""
    train = data / "train" / "rose"
    (data / "val" / "rose" / "same.jpg").write_bytes((train / "1.jpg").read_bytes())
    with Image.open(train / "3.jpg") as photo:
        photo.save(data / "val" / "rose" / "near.jpg", quality=60)
    assert main(["data", "check", str(data)]) == 4
    assert "  2 in two splits " in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert main(["data", "check", str(data)]) == 4
    out = capsys.readouterr().out
    assert "  1 in two splits                 train/rose/1.jpg = val/rose/same.jpg\n" in out
    assert (
        "good to know:\n  1 check left out                near duplicates, which need imagehash: "
        "pip install '.[train]'\n" in out
    )
    assert main(["data", "check", str(data), "--format", "json"]) == 4
    kinds = [(one["kind"], one["severity"]) for one in json.loads(capsys.readouterr().out)["findings"]]
    assert kinds == [("in_two_splits", "error"), ("not_checked", "warning")]


def test_photos_that_are_not_exit_4_and_all_are_in_the_json(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(5):
        (data / "train" / "rose" / f"empty{i}.jpg").touch()
    (data / "val" / "tulip" / "copy.jpg").write_bytes((data / "train" / "rose" / "1.jpg").read_bytes())
    (data / "train" / "rose" / "large.webp").touch()
    assert main(["data", "check", str(data)]) == 4
    out = capsys.readouterr().out
    assert "  6 unreadable                    train/rose/empty0.jpg (empty file)\n" in out
    assert "and 3 more\n" in out
    assert "  1 in two splits                 train/rose/1.jpg = val/tulip/copy.jpg\n" in out
    assert out.endswith("\n3 kinds of trouble would hurt a run.\n")
    assert main(["data", "check", str(data), "--format", "json"]) == 4
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "dla.data-check/1"
    assert record["passed"] is False
    unreadable = [f for f in record["findings"] if f["kind"] == "unreadable"]
    assert [f["photos"][0]["name"] for f in unreadable] == [
        f"{data}/train/rose/{name}" for name in (*(f"empty{i}.jpg" for i in range(5)), "large.webp")
    ]
    assert "exact" not in unreadable[0]
    pair = next(f for f in record["findings"] if f["kind"] == "in_two_splits")
    assert pair == {
        "kind": "in_two_splits", "severity": "error", "exact": True, "message": "the same pixels in train and val",
        "class_ids": [], "photos": [
            {"name": f"{data}/train/rose/1.jpg", "split": "train", "class_id": "rose"},
            {"name": f"{data}/val/tulip/copy.jpg", "split": "val", "class_id": "tulip"},
        ],
    }  # fmt: skip
    assert record["splits"][1] == {"split": "val", "photos": 5, "classes": {"rose": 2, "tulip": 3}}
    assert record["exif_rotated"] == {"photos": 0, "fraction": 0.0}


def test_names_stay_on_their_line_and_bytes_that_are_no_text_go_out_as_they_are(data: Path) -> None:
    odd = data / "train" / "rose" / os.fsdecode(b"a\nb\x1b[31m\xff.jpg")
    odd.touch()
    words = [sys.executable, "-m", "dla", "data", "check", str(data)]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == 4
    assert b"train/rose/a\\nb\\x1b[31m\xff.jpg (empty file)\n" in done.stdout
    assert done.stderr == b""
    done = subprocess.run([*words, "--format", "json"], capture_output=True)
    assert json.loads(done.stdout)["findings"][0]["photos"][0]["name"] == str(odd)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "chek", "x"], 'no command of dla data is called "chek". Nearest: check. All: dla data --help'),
        (["data", "check"], "data"),
        (["data", "check", "{0}", "--workers", "-1"], "--workers is -1. Allowed: 0 or more"),
        (
            ["data", "check", "{0}/train/rose"],
            "has no class folders (4 photos are directly in it). To name the classes",
        ),
        (
            ["data", "check", "{0}", "--lable-column", "x"],
            'no option is called "--lable-column". Nearest: --label-column',
        ),
    ],
)
def test_wrong_usage(data: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.format(data) for word in words]) == 2
    assert said in capsys.readouterr().err


def test_what_is_not_there_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "gone")]) == 3
    assert "gone does not exist" in capsys.readouterr().err


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 0
    assert "check" in capsys.readouterr().out


def test_columns_of_a_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "t.tsv").write_text("file\tkind\ntrain/rose/1.jpg\ta\ntrain/rose/3.jpg\ta\ntrain/tulip/0.jpg\tb\n")
    columns = ["--image-column", "file", "--label-column", "kind"]
    assert main(["data", "check", str(data / "t.tsv"), *columns]) == 0
    assert capsys.readouterr().out.startswith(f"{data}/t.tsv: 3 photos in 2 classes\n")


def many(data: Path) -> list[str]:
    """A check that is given so many photos that it is not done soon, with two processes; its command."""
    for i in range(3000):
        (data / "train" / "rose" / f"link{i}.jpg").symlink_to(data / "train" / "rose" / "1.jpg")
    return [sys.executable, "-m", "dla", "data", "check", str(data), "--workers", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "started", "code"), [("all", 1, 130), ("all", 2, 130), ("worker", 2, 1)])
def test_a_check_that_is_stopped_ends_at_once_and_without_a_traceback(
    data: Path, victim: str, started: int, code: int
) -> None:
    with subprocess.Popen(many(data), stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
        while len(workers := children.read_text().split()) < started:
            assert running.poll() is None
            time.sleep(0.001)
        if victim == "all":
            os.killpg(running.pid, signal.SIGINT)
        else:
            os.kill(int(workers[0]), signal.SIGKILL)
        _, said = running.communicate(timeout=60)
    assert running.returncode == code
    assert said == ("" if victim == "all" else "dla: a process that decoded photos was killed, perhaps for lack of "
                    "memory. Try --workers 1\n")  # fmt: skip
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six photos with masks of two classes, four with one to train with."""
    for i, crop in enumerate(crops(6)):
        folder = tmp_path / ("train" if i < 4 else "val")
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg(crop))
        ids = np.arange(crop.width * crop.height).reshape(crop.height, crop.width) % 4 == 0
        Image.fromarray(ids.astype(np.uint8)).save(folder / "masks" / f"{i}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["sky", "road"]}))
    return tmp_path


def test_masks_are_checked_by_the_flag(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "check", str(pairs), "--workers", "0", "--task", "segment"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{pairs}: 6 photos with masks in 2 classes, train 4, val 2"
    assert lines[2].split() == ["sky", "75.00%", "of", "the", "pixels,", "in", "4", "photos"]
    assert lines[-1] == "Nothing was found that would hurt a run."
    (pairs / "train" / "masks" / "0.png").unlink()
    (pairs / "train" / "masks" / "1.png").write_bytes(b"")
    assert main(words) == 4
    out = capsys.readouterr().out
    assert "  1 photo without a mask          train/images/0.jpg (there is no mask called 0)\n" in out
    assert "  1 mask: empty file              train/images/1.jpg" in out
    assert main([*words, "--format", "json"]) == 4
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["passed"], record["classes"]) == ("dla.pair-check/1", False, ["sky", "road"])


@pytest.mark.parametrize("command", ["data check", "train", "validate"])
def test_pairs_are_never_two_classes(pairs: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--output", str(pairs.parent / "run")] if command == "train" else []
    assert main([*command.split(), str(pairs), *flags]) == 2
    assert "has images/ and masks/, which are pairs for segmentation, no classes. Try: --task segment" in (
        capsys.readouterr().err
    )
