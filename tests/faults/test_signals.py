"""A real `dla train` that is asked to stop, finds the disk full, or finds another run in its folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.flat_photos import PLAIN
from support.warm import WarmCommand

pytestmark = pytest.mark.slow

Training = WarmCommand | subprocess.Popen[str]
SMALL = [
    "--recipe",
    PLAIN,
    "--model",
    "dla46x_c",
    "--batch-size",
    "4",
    "--input.sizes",
    "{0: 32}",
    "--input.val_size",
    "32",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name in ("blue", "red"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 255, (34, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@contextmanager
def training(photos: Path, run: Path, *words: str, warm: bool = True) -> Iterator[Training]:
    """`dla train`, which is not there any more afterwards; as a shell starts it unless `warm`."""
    command = ["train", str(photos), *SMALL, "--output", str(run), *words]
    cold = [sys.executable, "-m", "dla", *command]
    with WarmCommand(command) if warm else subprocess.Popen(cold, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(process: Training, there: Path) -> None:
    while not there.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)


def newest(run: Path) -> Path:
    return sorted(p for p in (run / "checkpoints").iterdir() if p.name[0].isdigit())[-1]


def said(process: Training) -> str:
    assert process.stderr is not None
    return process.stderr.read()


@pytest.mark.parametrize(("number", "code", "warm"), [(signal.SIGTERM, 143, True), (signal.SIGINT, 130, False)])
def test_a_stop_saves_first_and_the_same_command_goes_on(
    number: signal.Signals, code: int, warm: bool, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with training(photos, run, "--epochs", "1000", warm=warm) as process:
        wait_for(process, run / "metrics.jsonl")
        time.sleep(0.1)
        process.send_signal(number)
        text = said(process)
        assert process.wait() == code
    state = json.loads((newest(run) / "state.json").read_text())
    at = state["facts"]
    assert state["step"] == 4 * at["epoch"] + at["step"]
    assert f"Saved at step {state['step']}. Run the same command again to continue.\n" in text
    assert "Traceback" not in text
    with training(photos, run, "--epochs", "1000") as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        found = next(line for line in lines if line.startswith("continues at"))
        assert found == f"continues at epoch {at['epoch'] + 1}, step {at['step']}\n"


def test_a_second_run_in_the_folder_is_refused(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(photos, run, "--epochs", "1000") as first:
        wait_for(first, run / "config.yaml")
        with training(photos, run, "--epochs", "1000") as second:
            text = said(second)
            assert second.wait() == 2
        assert f"dla: a run is in progress in {run} (process {first.pid} on " in text
        assert first.poll() is None


def full(folder: Path) -> bool:
    """A small disk of its own for the folder; False where this user may not mount one."""
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    return mount is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk_is_said_and_what_is_there_is_kept(photos: Path, tmp_path: Path) -> None:
    """A checkpoint is 9 MB: two fit on a disk of 24 MB, a third one does not. Or no file may grow beyond 8 MB."""
    run = tmp_path / "disk" / "run"
    limited = not full(run.parent)
    try:
        with training(photos, run, "--epochs", "1000", "--save-every", "0") as process:
            if limited:
                wait_for(process, run / "metrics.jsonl")
                import resource

                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8_000_000, resource.RLIM_INFINITY))
            text = said(process)
            assert process.wait() == 1
        assert f"dla: the checkpoint {run}/checkpoints/0000" in text
        assert "cannot be written: No space left on device. Run the same command again" in text or limited
        assert f"Run the same command again to continue from {newest(run)}\n" in text
        with training(photos, run, "--epochs", "1000") as process:  # the room of a third, half written one is back
            assert process.stderr is not None
            assert any("continues at epoch" in line for line in iter(process.stderr.readline, ""))
    finally:
        if not limited:
            subprocess.run(["umount", str(run.parent)], check=True)
