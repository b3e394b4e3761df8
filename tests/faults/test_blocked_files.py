"""Signals while a file blocks, as on a network disk that does not answer: every command that reads ends at once.

Here a file blocks because what opens photos reads an empty pipe instead. A signal is sent once it does, and the pipe
stays empty until the command has ended.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dla.cli import main
from dla.exporting import verify
from dla.images import decode
from dla.inference import calibrate_int8
from support.flat_photos import PLAIN
from support.photos import CHELSEA, COFFEE

pytestmark = pytest.mark.slow

CLASSES = "n01443537", "n01629819"  # of the built-in network
SMALL = ["--recipe", PLAIN, "--model", "dla46x_c", "--batch-size", "4", "--input.sizes", "{0: 32}",
         "--input.val_size", "32"]  # fmt: skip


class Blockade:
    """After `after` photos with `part` in their path, opening such photos blocks; then `number` is sent."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.opened, self.after, self.part, self.number = 0, sys.maxsize, "", signal.SIGTERM
        self.open_path = decode._open_path
        self.timer: threading.Timer | None = None

    def open(self, path: Any, max_bytes: int) -> Any:
        self.opened += self.part in str(path)
        if self.opened > self.after and self.part in str(path):
            if self.timer is None:
                self.timer = threading.Timer(0.1, os.kill, (os.getpid(), self.number))
                self.timer.start()
            os.read(self.reader, 1)
        return self.open_path(path, max_bytes)

    def release(self) -> None:
        os.close(self.writer)
        if self.timer is not None:
            self.timer.join()


@pytest.fixture
def blockade(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blockade]:
    blockade = Blockade()
    monkeypatch.setattr(decode, "_open_path", blockade.open)
    deadline = threading.Timer(60, blockade.release)  # a command that waits for the file fails, but ends
    deadline.start()
    yield blockade
    assert deadline.is_alive()
    deadline.cancel()
    blockade.release()
    for thread in threading.enumerate():
        if thread.name == "dla-ahead":
            thread.join()
    os.close(blockade.reader)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos as a data set with splits, of two classes that the built-in network knows."""
    folder = tmp_path / "photos"
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(4):
                shutil.copy((CHELSEA, COFFEE)[i % 2], folder / split / name / f"{i}.jpg")
    return folder


def stopped(words: list[str], number: int = signal.SIGTERM) -> None:
    if number == signal.SIGINT:
        assert main(words) == 130
        return
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_predict_writes_the_records_before(
    suffix: str, workers: str, number: signal.Signals, photos: Path, tmp_path: Path, blockade: Blockade
) -> None:
    blockade.after, blockade.number = 2, number
    out = tmp_path / f"out.{suffix}"
    stopped(["predict", str(photos), "-q", "--workers", workers, "-o", str(out)], number)
    text = out.read_text()
    records = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    assert [r["path"] for r in records] == [str(photos / "train" / CLASSES[0] / f"{i}.jpg") for i in range(2)]


def test_predict_with_a_list_that_does_not_go_on(
    photos: Path, tmp_path: Path, blockade: Blockade, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is read by the main thread; one of the photos before it blocks too."""
    blockade.after = 2
    first = [str(photos / "train" / name / "0.jpg") for name in CLASSES] + [str(photos / "val" / CLASSES[0] / "0.jpg")]
    reader, writer = os.pipe()
    os.write(writer, "".join(f"{path}\n" for path in first).encode())
    with open(reader, "rb") as listed:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(listed))
        stopped(["predict", "-", "-q", "-o", str(tmp_path / "out.jsonl")])
    os.close(writer)
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [r["path"] for r in records] == first[:2]


def test_features_leaves_no_file(photos: Path, tmp_path: Path, blockade: Blockade) -> None:
    blockade.after = 2
    stopped(["features", str(photos), "-q", "-o", str(tmp_path / "out.npz")])
    assert os.listdir(tmp_path) == ["photos"]


def test_validate(photos: Path, blockade: Blockade) -> None:
    blockade.after = 2
    stopped(["validate", str(photos), "-q"])


def test_data_check_in_threads(photos: Path, blockade: Blockade) -> None:
    blockade.after = 2
    stopped(["data", "check", str(photos), "-q"])


def test_train_while_it_reads_headers(photos: Path, tmp_path: Path, blockade: Blockade) -> None:
    blockade.after = 2
    stopped(["train", str(photos), *SMALL, "-q", "--output", str(tmp_path / "run")])
    assert os.listdir(tmp_path) == ["photos"]


@pytest.mark.parametrize(("part", "after"), [("/train/", 8 + 8 + 12), ("/val/", 8)])  # 8 headers, 8 for the mosaic
def test_train_saves_the_steps_before(part: str, after: int, photos: Path, tmp_path: Path, blockade: Blockade) -> None:
    blockade.part, blockade.after = part, after
    run = tmp_path / "run"
    words = [str(photos), *SMALL, "--workers", "1", "--photo-cache", "none", "--epochs", "9", "--output", str(run)]
    stopped(["train", *words, "-q"])
    newest = max(path for path in (run / "checkpoints").iterdir())
    assert json.loads((newest / "state.json").read_text())["step"] >= 2


def test_export_and_its_calibration(
    photos: Path, tmp_path: Path, blockade: Blockade, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GATE_PHOTOS", "LEAST_CALIBRATION"):
        monkeypatch.setattr(calibrate_int8, name, 1)
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 3)
    blockade.after = 2
    words = ["export", "shipped:tiny200", "-q", "-o", str(tmp_path / "out"), "--to", "openvino"]
    stopped([*words, "--precision", "int8", "--calibrate", str(photos)])
    blockade.timer = None
    stopped([*words, "--photos", str(photos)])
    assert os.listdir(tmp_path) == ["photos"]


BLOCKED_MAIN = """\
import ctypes, sys, dla.cli

def blocked(words):
    # the thread that waits for this new process is stuck in the kernel, and the process waits for a writer of the pipe
    libc, actions, pid = ctypes.CDLL(None), ctypes.create_string_buffer(256), ctypes.c_int()
    libc.posix_spawn_file_actions_init(actions)
    libc.posix_spawn_file_actions_addopen(actions, 5, sys.argv[1].encode(), 0, 0)
    print("blocked", flush=True)
    libc.posix_spawn(ctypes.byref(pid), b"/bin/true", actions, None, (ctypes.c_char_p * 2)(b"true", None), None)
    return 0

dla.cli._command = lambda words: blocked
sys.exit(dla.cli.main(["predict"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the main thread is watched on Linux only")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_main_thread_that_is_stuck_in_the_kernel(number: int, code: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = [sys.executable, "-c", BLOCKED_MAIN, str(tmp_path / "pipe")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"blocked\n"
        process.send_signal(number)
        try:
            process.wait(60)
        finally:
            os.close(os.open(tmp_path / "pipe", os.O_RDWR))  # the new process ends
        assert process.returncode == code


BLOCKED_READERS = """\
import os, sys, threading
from dla.cli import main
from dla.images import decode

def blocked(path, max_bytes):
    threading.Timer(0.3, os.write, (1, b"blocked\\n")).start()
    os.read(os.pipe()[0], 1)

decode._open_path = blocked
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["predict", "data check"])
def test_the_interpreter_ends_too(command: str, photos: Path) -> None:
    """Neither threads nor processes that wait for a file are waited for; `data check` has processes for many photos."""
    for i in range(130):
        (photos / "train" / CLASSES[0] / f"link{i}.jpg").symlink_to(photos / "train" / CLASSES[0] / "0.jpg")
    words = [sys.executable, "-c", BLOCKED_READERS, *command.split(), str(photos), "-q", "--workers", "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "blocked\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 143
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert len(children) == (2 if command == "data check" else 0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
