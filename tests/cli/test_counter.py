"""What a run of `dla predict` or `dla features` replaces, allows, counts and says at its end."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from jsonargparse import Namespace
from PIL import Image

import dla
from dla.cli import main
from dla.cli.common import RunCounter, skipped_files
from dla.errors import InputError
from dla.images.find import PhotoFinder
from dla.inference.classifier import Prediction
from dla.types import NO_PROGRESS
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import CHELSEA, COFFEE

pytestmark = pytest.mark.slow

GONE = "gone.jpg"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("empty.jpg").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "ways"),
    [
        (["predict", "-o", "out.jsonl"], "--resume continues it, --force replaces it"),
        (["predict", "-o", "out.csv"], "--resume continues it, --force replaces it"),
        (["predict", "-o", "out.json"], "--force replaces it"),
        (["predict", "-o", "out"], "--force replaces it"),
        (["features", "-o", "out.npz"], "--force replaces it"),
    ],
)
def test_a_finished_file_is_not_replaced(words: list[str], ways: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(words[-1])
    assert main([*words, str(COFFEE), "-q"]) == 0
    before = out.read_bytes()
    assert main([*words, str(CHELSEA), str(CHELSEA), "-q"]) == 2
    assert capsys.readouterr().err == f"dla: {out} exists already: {ways}\n"
    assert out.read_bytes() == before
    assert main([*words, str(CHELSEA), str(CHELSEA), "-q", "--force"]) == 0
    assert out.read_bytes() != before


def test_an_empty_file_is_nothing_to_lose() -> None:
    Path("out.jsonl").touch()
    assert main(["predict", str(COFFEE), "-q", "-o", "out.jsonl"]) == 0


def test_a_file_that_appears_meanwhile_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other run has ended before this one has loaded its network."""
    from dla.inference import classifier

    load = classifier.load

    def slow(*args: object, **options: object) -> object:
        Path("out.jsonl").write_text("theirs\n")
        return load(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(classifier, "load", slow)
    assert main(["predict", str(COFFEE), "-q", "-o", "out.jsonl"]) == 2
    assert "out.jsonl exists already: --resume continues it, --force replaces it" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["empty.jpg", "out.jsonl"]
    assert Path("out.jsonl").read_text() == "theirs\n"


def test_resume_or_force(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(COFFEE), "-o", "out.jsonl", "--resume", "--force"]) == 2
    assert "--resume continues --output, and --force replaces it. Give one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("allowed", "code"),
    [("0", 1), ("1", 1), ("2", 0), ("49%", 1), ("50%", 0), ("50 %", 0), ("100%", 0), ("49.9%", 1), ("0%", 1)],
)
def test_some_may_fail(allowed: str, code: int) -> None:
    args = Namespace(max_failed=allowed, summary=None, output=None, quiet=True)
    with RunCounter(args, "predict") as counter:
        counter.begin(PhotoFinder([]), 4)
        for error in (None, InputError("not_found", ""), InputError("truncated", ""), None):
            counter.add(Prediction("a.jpg", error=error), NO_PROGRESS)
    assert counter.exit_code == code


@pytest.mark.parametrize("command", [["predict", "-o", "out.jsonl"], ["features", "-o", "out.npz"]], ids=" ".join)
def test_the_exit_code_of_a_command_with_failures(command: list[str]) -> None:
    words = [*command, "--force", str(COFFEE), GONE, str(CHELSEA), "empty.jpg", "-q"]
    assert main(words) == main([*words, "--max-failed", "1"]) == 1
    assert main([*words, "--max-failed", "50%"]) == 0


@pytest.mark.parametrize("allowed", ["-1", "many", "", "101%", "1.5", "%", "1%%", "1e3", "nan"])
def test_max_failed_is_a_number_or_a_percentage(allowed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(COFFEE), f"--max-failed={allowed}"]) == 2
    assert f"--max-failed is {allowed}. Allowed: a number of inputs, such as 5, or a per" in capsys.readouterr().err


def test_max_failed_in_a_file_of_options() -> None:
    for text in ("max_failed: 2", "max_failed: '2'", "max_failed: 50%"):
        Path("my.yaml").write_text(text)
        assert main(["predict", str(COFFEE), GONE, "-q", "--config", "my.yaml"]) == 0


@pytest.mark.parametrize("command", [["predict", "-o", "out.jsonl"], ["features", "-o", "out.npz"]], ids=" ".join)
def test_the_last_line_and_the_summary_count_by_code(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*command, str(COFFEE), GONE, "empty.jpg", GONE, "--summary", "run.json"]
    assert main(words) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"4 photos: 1 answered, 3 failed (2 not_found, 1 empty_file; see {command[-1]}). ")
    found = json.loads(Path("run.json").read_text())
    assert {key: found[key] for key in list(found)[:11]} == {
        "schema": "dla.summary/1", "command": command[0], "model": "shipped:tiny200", "output": command[-1],
        "exit_code": 1, "status": "complete", "message": None, "total": 4, "answered": 1, "failed": 3,
        "errors": {"not_found": 2, "empty_file": 1},
    }  # fmt: skip
    assert list(found)[11:] == ["from_earlier_run", "started", "ended", "seconds", "photos_per_s"]
    began, ended = (datetime.fromisoformat(found[key]) for key in ("started", "ended"))
    assert began.tzinfo is not None
    assert 0 <= found["seconds"] <= (ended - began).total_seconds() + 1
    assert abs((datetime.now(began.tzinfo) - ended).total_seconds()) < 60
    assert found["photos_per_s"] == pytest.approx(4 / found["seconds"], rel=0.05)


def test_a_resumed_run_counts_the_failures_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("out.jsonl", "out.csv"):
        words = ["predict", "-o", out, "--summary", "run.json", "--batch-size", "1", str(COFFEE), GONE, str(CHELSEA)]
        assert main(words) == 1
        capsys.readouterr()
        assert main([*words, "empty.jpg", "--resume", "--max-failed", "2"]) == 0
        last = capsys.readouterr().err.splitlines()[-1]
        assert "4 photos (3 of them in an earlier run): 2 answered, 2 failed (1 not_found, 1 empty_file; " in last
        found = json.loads(Path("run.json").read_text())
        assert (found["total"], found["from_earlier_run"], found["exit_code"]) == (4, 3, 0)
        assert found["errors"] == {"not_found": 1, "empty_file": 1}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["predict", "none"], 2, "nothing to classify: no photos in none"),
        (["predict", str(COFFEE), "-o", "old.jsonl"], 2, "old.jsonl exists already: --resume continues it"),
        (["predict", str(COFFEE), "--resume"], 2, "--resume cannot continue standard output"),
        (["predict", ".", "--pictures", "here"], 2, "--pictures here is in ., which is an input"),
        (["predict", str(COFFEE), "--model", "gone.pth"], 3, "gone.pth does not exist."),
        (["predict", str(COFFEE), "--model", "models/gone"], 3, "models/gone does not exist."),
        (["predict", str(COFFEE), "--model", "dla35"], 2, 'no network is called "dla35"'),
        (["predict", GONE, "--fail-fast"], 1, "gone.jpg: there is no such file"),
        (["predict", str(COFFEE), "-o", "no/out.jsonl"], 1, "no/out.jsonl: No such file or directory"),
        (["features", str(COFFEE), "-o", "old.npz"], 2, "old.npz exists already: --force replaces it"),
        (["features", str(COFFEE)], 2, "--output is missing"),
        (["segment", str(COFFEE), "-o", "old"], 2, "old/records.jsonl exists already: --resume continues it"),
        (["edges", str(COFFEE), "-o", "old"], 2, "old/records.jsonl exists already: --resume continues it"),
    ],
)
def test_a_run_that_ends_early_has_a_summary_too(words: list[str], code: int, message: str) -> None:
    Path("run.json").write_text("yesterday's")
    Path("none").mkdir()
    Path("old").mkdir()
    for name in ("old.jsonl", "old.npz", "old/records.jsonl"):
        Path(name).write_text("yesterday's")
    assert main([*words, "-q", "--summary", "run.json"]) == code
    found = json.loads(Path("run.json").read_text())
    assert (found["exit_code"], found["status"], found["total"], found["photos_per_s"]) == (code, "failed", 0, None)
    assert found["message"].startswith(message)


def test_a_full_disk_is_not_like_failed_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dla.inference.result_files.PredictionWriter.write", full)
    assert main(["predict", str(COFFEE), "-q", "-o", "out.jsonl", "--summary", "run.json"]) == 1
    found = json.loads(Path("run.json").read_text())
    assert (found["status"], found["message"]) == ("failed", "out.jsonl: No space left on device")


def test_a_run_with_nothing_left_has_no_rate(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "-o", "out.jsonl", str(COFFEE), str(CHELSEA), "--summary", "run.json"]
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert capsys.readouterr().err.splitlines()[-1].endswith(" s.")
    found = json.loads(Path("run.json").read_text())
    assert (found["status"], found["from_earlier_run"], found["photos_per_s"]) == ("complete", 2, None)


def test_the_kinds_of_skipped_files_are_counted() -> None:
    finder = PhotoFinder(["."])
    for name in (".hidden", "a.txt", "b.TXT", "c.xmp", "README", *(f"{n}.{n}" for n in range(3))):
        Path(name).touch()
    assert list(finder) == ["./empty.jpg"]
    words = "8 files of other kinds: 2 .txt, 1 .0, 1 .1, 1 .2, 1 without a suffix, 1 others, 1 hidden"
    assert skipped_files(finder) == words


def test_a_summary_that_cannot_be_written_is_said_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(COFFEE), "--summary", "no/run.json"]) == 2
    assert "--summary no/run.json: there is no folder no" in capsys.readouterr().err
    assert main(["predict", str(COFFEE), "-o", "a.json", "--summary", "./a.json"]) == 2
    assert "--output and --summary are both a.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sent", "code", "kept"),
    [
        (["predict", "-o", "out.jsonl"], signal.SIGINT, 130, " They are in out.jsonl; --resume continues it"),
        (["predict", "-o", "out.json"], signal.SIGTERM, 143, " They are in out.json"),
        (["predict"], signal.SIGTERM, 143, ""),
        (["features", "-o", "out.npz"], signal.SIGTERM, 143, " out.npz is not written: it needs the whole run"),
    ],
)
def test_a_stopped_run_says_what_it_has_written(
    words: list[str], sent: int, code: int, kept: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original = getattr(dla.Classifier, words[0])

    def stopped(*given: object, **options: object) -> Iterator[object]:
        for number, record in enumerate(original(*given, **options)):
            if number == 5:
                os.kill(os.getpid(), sent)
            yield record

    monkeypatch.setattr(dla.Classifier, words[0], stopped)
    words += [str(COFFEE), GONE, *[str(COFFEE)] * 10, "--summary", "run.json"]
    if sent == signal.SIGTERM:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == code
    else:
        assert main(words) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"dla: stopped after 5 of 12 photos.{kept}"
    found = json.loads(Path("run.json").read_text())
    assert [found[key] for key in ("exit_code", "total", "answered", "failed")] == [code, 5, 4, 1]
    assert (found["status"], found["message"]) == ("stopped", None)
    if "out.jsonl" in words:
        assert len(Path("out.jsonl").read_text().splitlines()) == 5
        monkeypatch.setattr(dla.Classifier, words[0], original)
        assert main([*words, "--resume"]) == 1
        assert len(Path("out.jsonl").read_text().splitlines()) == 12


def test_photos_of_other_things_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The built-in network has no name for a grey area."""
    for name in ("grey.png", "gray.png"):
        Image.new("RGB", (64, 64), "grey").save(name)
    words = ["predict", "grey.png", "gray.png", str(COFFEE), "--format", "csv"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    licence, said, last = err.splitlines()
    assert licence == "dla: shipped:tiny200 is for non-commercial research and knows 200 classes."
    assert said == (
        "dla: the best class of most photos is below 30 %: they may be of none of the 200 classes of shipped:tiny200. "
        "--model dla60 knows 1,000; dla train makes your own."
    )
    assert last.startswith("3 photos: ")
    assert len(out.splitlines()) == 4
    assert main([*words, "-q"]) == 0
    assert capsys.readouterr() == (out, "")
    main([*words, str(COFFEE)])  # half of the photos are not most
    assert "none of the" not in capsys.readouterr().err


def test_only_the_built_in_network_asks_for_another(capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained network with four classes is sure of nothing."""
    from dla.models.build import build

    net = build("dla46x_c", num_classes=4)
    net.fc.weight.data.zero_()
    net.fc.bias.data.zero_()
    write_folder("m", net.state_dict(), ModelConfig("dla46x_c", 4, pretrained_cfg={"input_size": [3, 32, 32]}))
    assert main(["predict", str(COFFEE), "--model", "m"]) == 0
    assert "none of the" not in capsys.readouterr().err
