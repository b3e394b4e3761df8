"""The cache: whole or nothing, and never worth an error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from dla.cli import main
from dla.storage import cache

KEY = cache.key_of("a")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLA_CACHE", str(tmp_path / "cache"))


def test_keys_tell_parts_apart() -> None:
    assert len({cache.key_of("a", "b"), cache.key_of("ab"), cache.key_of("ab", ""), cache.key_of("b", "a")}) == 4


def test_there_and_back() -> None:
    assert cache.read("steps", KEY) is None
    assert cache.write("steps", KEY, b"data")
    assert cache.read("steps", KEY) == b"data"
    assert cache.read("onnx", KEY) is None
    assert cache.read("steps", cache.key_of("b")) is None


def test_what_comes_later_holds() -> None:
    for i in range(20):
        cache.write("timings", KEY, f"data {i}".encode())
        assert cache.read("timings", KEY) == f"data {i}".encode()
    assert len(list(cache.entries())) == 1


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:20], lambda b: b[:-1], lambda b: b[:-1] + b"b",
                                    lambda b: b + b" and more", lambda b: bytes(len(b))])  # fmt: skip
def test_a_damaged_file_is_seen_and_made_again(damage: Callable[[bytes], bytes]) -> None:
    cache.write("steps", KEY, b"data")
    (entry,) = cache.entries()
    entry.path.write_bytes(damage(entry.path.read_bytes()))
    assert cache.read("steps", KEY) is None
    assert cache.write("steps", KEY, b"data")
    assert cache.read("steps", KEY) == b"data"
    assert len(list(cache.entries())) == 1


@pytest.mark.parametrize("place", ["file", "/proc/nope", "~nobody-of-this-name/x"])
def test_a_folder_that_cannot_be_written(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("~nobody-of-this-name").touch()  # where there is no such user it is a name like another
    monkeypatch.setenv("DLA_CACHE", place)
    assert not cache.write("steps", KEY, b"data")
    assert cache.read("steps", KEY) is None
    assert list(cache.entries()) == []


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    cache.write("steps", KEY, b"data")
    assert list(cache.cache_folder().glob("*/*")) == []


def test_two_at_once_and_one_killed() -> None:
    """Writers of the same key in turns of many, one of them killed: what is read is whole, always."""
    code = ("from dla.storage import cache\nfor i in range(10**6): cache.write('steps', cache.key_of('a'), "
            "bytes([65 + i % 7]) * 300_000); print(i, flush=True)")  # fmt: skip
    with ExitStack() as stack:
        writers = []
        for _ in range(2):
            writer = stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE))
            stack.callback(writer.kill)
            writers.append(writer)
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for turn in range(300):
            data = cache.read("steps", KEY)
            assert data is not None
            assert len(data) == 300_000
            assert len(set(data)) == 1
            if turn == 150:
                writers[0].send_signal(signal.SIGKILL)
    assert cache.read("steps", KEY) is not None


def test_clear_leaves_what_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.write("steps", KEY, b"data")
    mine = cache.cache_folder() / "steps" / "notes.txt"
    mine.write_text("mine")
    cache.write(cache.INT8, KEY, b"took photos")
    form = next(entry.path for entry in cache.entries() if entry.kind == cache.INT8)
    (cache.cache_folder() / "steps" / ".part-x1_y").touch()
    assert main(["cache"]) == 0
    out = capsys.readouterr().out
    assert "3 files, 0.0 MB" in out
    assert "int8   1 files  0.0 MB  int8 models made from your photos" in out
    assert main(["cache", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kinds"] == {"int8": {"files": 1, "bytes": 43}, "steps": {"files": 2, "bytes": 36}}
    assert found["folder"] == str(tmp_path / "cache")
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.startswith("removed from ")
    assert {p for p in cache.cache_folder().rglob("*") if p.is_file()} == {mine, form}
