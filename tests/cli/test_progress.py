"""What people see of long work: done of total, rate, time left; a bar only on a terminal."""

from __future__ import annotations

import io
import math
import os
import pty
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import dla
from dla.benchmarking import bench as bench_module
from dla.cli import common
from dla.cli.common import show_progress
from dla.cli.progress import ProgressBar
from dla.cli.train import RunFigures
from dla.training.events import StepEvent
from dla.types import NO_PROGRESS
from support.photos import crops, jpeg
from support.progress import Piece, Recorder
from support.small_models import write_small

pytestmark = pytest.mark.slow


def line(total: int | None, unit: str, done: int, seconds: float) -> str:
    """The bar's own line after so much work in so much time."""
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=120, force_terminal=False))
    bar.start("measuring", total, unit)
    task = bar.bars.tasks[0]
    task.start_time, task._get_time = 0.0, lambda: seconds
    bar.advance(done)
    bar.close()
    Console(file=out, width=120).print(bar.bars.make_tasks_table([task]))
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize(
    ("total", "unit", "done", "seconds", "expected"),
    [
        (2000, "photos", 500, 10.0, "500/2,000 photos 50 photos/s 0:30 left"),
        (42, "rounds", 6, 10.0, "6/42 rounds 0.6 rounds/s 1:00 left"),
        (None, "photos", 1234, 2.0, "1,234 photos 617 photos/s"),
        (240_000_000, "bytes", 60_000_000, 30.0, "60.0 MB/240.0 MB 2.0 MB/s 1:30 left"),
    ],
)
def test_the_bar_says_done_of_total_rate_and_time_left(
    total: int | None, unit: str, done: int, seconds: float, expected: str
) -> None:
    found = line(total, unit, done, seconds)
    assert found.startswith("measuring ")
    assert found.endswith(expected)
    assert ("left" in found) == (total is not None)


def test_without_a_terminal_there_are_sentences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(common, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    with show_progress(False, bar=False) as progress:
        progress.start("training", 10)
        progress.advance(4)
        progress.note("epoch 1/3")
        progress.log("half of it is done")
        monkeypatch.setattr(common, "NOTE_SECONDS", -1.0)
        clock.append(8.0)
        progress.note("epoch 2/3")
    assert capsys.readouterr() == ("", "dla: half of it is done\ndla:   epoch 2/3  0.5 photos/s  0:12 left\n")
    with show_progress(True, bar=True) as progress:
        assert progress is NO_PROGRESS


def test_on_a_terminal_there_is_a_bar_and_the_records_are_whole(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, photo in enumerate(crops(30)):
        (folder / f"{i}.jpg").write_bytes(jpeg(photo))
    (folder / "empty.jpg").write_bytes(b"")
    out = tmp_path / "out.jsonl"
    words = ["predict", str(folder), "-o", str(out)]
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    with subprocess.Popen([sys.executable, "-m", "dla", *words], stderr=slave, env=env) as process:
        os.close(slave)
        seen = b""
        try:
            while data := os.read(master, 4096):
                seen += data
        except OSError:  # the other end is closed
            pass
    os.close(master)
    assert process.returncode == 1
    assert len(out.read_text().splitlines()) == 31
    text = seen.decode()
    assert "/31 photos" in text
    assert "photos/s" in text
    assert f"dla: {folder / 'empty.jpg'}: the file is empty" in text


def test_what_is_printed_beside_a_bar_stays_on_stdout() -> None:
    code = (
        "from dla.cli.common import show_progress\n"
        "with show_progress(False) as progress:\n"
        "    progress.start('working', 2)\n"
        "    print('a result')\n"
        "    progress.log('a sentence')\n"
    )
    master, slave = pty.openpty()
    done = subprocess.run([sys.executable, "-c", code], stderr=slave, stdout=subprocess.PIPE, text=True)
    os.close(slave)
    seen = os.read(master, 10_000).decode()
    os.close(master)
    assert done.stdout == "a result\n"
    assert "working" in seen
    assert "dla: a sentence" in seen


def test_validate_tells_of_every_photo_of_each_model(tmp_path: Path) -> None:
    models = [str(write_small(tmp_path / name, ("a", "b"), seed)) for seed, name in enumerate(("one", "other"))]
    for i, photo in enumerate(crops(6)):
        path = tmp_path / "val" / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo) if i else b"")
    progress = Recorder()
    dla.validate(tmp_path / "val", models, progress=progress)
    assert progress.pieces == [Piece("validating", 6, "photos", 6)] * 2


def test_the_check_of_data_tells_of_every_photo(tmp_path: Path) -> None:
    for i, photo in enumerate(crops(4)):
        path = tmp_path / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(photo))
    progress = Recorder()
    dla.check_data(tmp_path, progress=progress)
    assert progress.pieces == [Piece("checking", 4, "photos", 4)]


@pytest.mark.parametrize("preprocessing", [True, False])
def test_export_tells_of_every_picture(preprocessing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dla.exporting.verify.SAMPLE_IMAGES", 12)
    progress = Recorder()
    made = dla.export("shipped:tiny200", tmp_path / "out", "onnx", preprocessing=preprocessing, progress=progress)
    assert progress.pieces[0] == Piece("comparing", 12, "images", 12)
    assert all(piece.done == piece.total for piece in progress.pieces)
    assert sum(piece.done for piece in progress.pieces) == made.report.images


def test_a_benchmark_tells_of_every_round_of_what_ran_and_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, case: Any, cache: str | None = None) -> None:
            self.case = case

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def wait(self) -> None:
            if self.case.engine == "onnx":
                raise dla.UnavailableError("not here")

        def run_round(self) -> bench_module.Round:
            return bench_module.Round((0.01,) * 4, 10**8)

    monkeypatch.setattr(bench_module, "Worker", Fake)
    for name in ("PAUSE_S", "LOAD_S"):
        monkeypatch.setattr(bench_module, name, 0.001)
    progress = Recorder()
    report = dla.bench(["shipped:tiny200"], batches=(1, 2), rounds=3, progress=progress)
    assert {left.engine for left in report.skipped} == {"onnx"}
    assert progress.pieces == [Piece("measuring", 2 * 4 * 3, "rounds", 2 * 4 * 3)]


def test_where_a_run_stands_is_noted() -> None:
    progress = Recorder()
    figures = RunFigures(progress, 12)
    figures.on_step(StepEvent(3, 12, 5, 40, 0.4128, 0.5, 0.1, 8))
    figures.on_step(StepEvent(3, 12, 6, 40, 0.4128, math.nan, 0.1, 8))
    figures.on_validation_batch()
    place = "epoch 3/12  step 5/40  loss 0.413"
    assert progress.notes == [f"{place}  accuracy 50 %", place.replace("5/40", "6/40"), "validating"]
