"""The atomic writer: whole or not at all, nothing left behind, two never meet. And what JSON files may hold."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dla.errors import DamagedError, UnavailableError
from dla.storage import files
from dla.storage.files import (
    JsonObject,
    errors_name,
    fsync_dir,
    is_leftover,
    open_aside,
    open_folder_aside,
    parse_object,
    read_json,
    remove_leftovers,
    write_file,
    write_files,
)

FULL = OSError(28, "No space left on device")


class Calls:
    """What the system was asked for, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        fsync, replace, rename = os.fsync, Path.replace, Path.rename

        def note_fsync(descriptor: int) -> None:
            name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.made.append(f"fsync {name.rpartition('-')[2]}")
            fsync(descriptor)

        def note_replace(self_: Path, target: Path) -> Any:
            self.made.append(f"rename {target.name}")
            return replace(self_, target)

        def note_rename(self_: Path, target: Path) -> Any:
            self.made.append(f"rename {target.name}")
            return rename(self_, target)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(Path, "replace", note_replace)
        monkeypatch.setattr(Path, "rename", note_rename)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_data_reaches_the_disk_before_its_name_and_the_name_before_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    write_files({folder / "b": b"1", folder / "a": b"2"})
    assert calls.made == ["fsync b", "fsync a", "rename b", "rename a", "fsync here"]
    calls.made.clear()
    with open_aside(folder / "a") as file:
        file.write(b"3")
    assert calls.made == ["fsync a", "rename a", "fsync here"]
    calls.made.clear()
    with open_folder_aside(folder / "c") as aside:
        (aside / "x").write_bytes(b"4")
    assert calls.made == ["fsync x", "fsync c", "rename c", "fsync here"]
    calls.made.clear()
    write_files({folder / "a": b"5"}, fsync=False)
    assert calls.made == ["rename a"]
    assert names(folder) == ["a", "b", "c"]
    assert (folder / "a").read_bytes() == b"5"


def test_none_changes_where_not_all_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files({folder / "a": b"old", folder / "b": b"old"})
    whole = os.fsync
    left = [1]

    def full(descriptor: int) -> None:
        if not left:
            raise FULL
        left.pop()
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_files({folder / "a": b"new", folder / "b": b"new"})
    assert [(folder / name).read_bytes() for name in names(folder)] == [b"old", b"old"]
    assert names(folder) == ["a", "b"]


@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt, SystemExit])
def test_what_breaks_off_leaves_nothing(folder: Path, error: Any) -> None:
    write_file(folder / "a", b"old")
    for opened in (open_aside(folder / "a"), open_folder_aside(folder / "b")):
        with suppress(OSError, KeyboardInterrupt, SystemExit), opened as aside:
            if isinstance(aside, Path):
                (aside / "x").write_bytes(b"half")
            else:
                aside.write(b"half")
            raise error
        assert names(folder) == ["a"]
    assert (folder / "a").read_bytes() == b"old"


def test_errors_have_the_path_that_was_given(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for write in (lambda: write_file("no/such", b""), lambda: open_aside("no/such").__enter__()):
        with pytest.raises(FileNotFoundError) as raised:
            write()
        assert raised.value.filename == "no/such"
    with pytest.raises(FileNotFoundError) as raised, errors_name("mine"):
        Path("other").read_bytes()
    assert raised.value.filename == "other"
    with pytest.raises(OSError, match="full") as unnamed, errors_name("mine"):
        raise OSError(28, "full")
    assert unnamed.value.filename == "mine"


def test_a_file_has_the_rights_of_any_new_file(folder: Path) -> None:
    (folder / "other").touch()
    write_file(folder / "a", b"1")
    with open_aside(folder / "b") as file:
        file.write(b"1")
    assert len({stat.S_IMODE((folder / name).stat().st_mode) for name in names(folder)}) == 1


def test_into_a_link_and_into_a_device(folder: Path) -> None:
    write_file(folder / "a", b"1")
    (folder / "link").symlink_to("a")
    write_file(folder / "link", b"2")
    assert (folder / "a").read_bytes() == b"2"
    assert (folder / "link").is_symlink()
    write_file("/dev/null", b"3")
    assert not os.path.isfile("/dev/null")


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, os.fsdecode(b"\xff" * 255)])
def test_names_as_long_as_they_can_be(folder: Path, name: str) -> None:
    write_file(folder / name, b"1")
    with open_aside(folder / name) as file:
        file.write(b"2")
    assert (folder / name).read_bytes() == b"2"
    assert names(folder) == [name]


def test_a_folder_that_is_there_stays_and_its_last_file_comes_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = folder.stat().st_ino
    moved = []
    rename = os.rename

    def note(source: Any, target: Any) -> None:
        moved.append(Path(target).name)
        rename(source, target)

    monkeypatch.setattr(os, "rename", note)
    with open_folder_aside(folder, last="b") as aside:
        for name in "abc":
            (aside / name).write_text(name)
        assert names(folder) == []
    assert moved[-1] == "b"
    assert (names(folder), folder.stat().st_ino) == (["a", "b", "c"], inode)
    assert names(folder.parent) == ["here"]


WRITER = """
import sys
from pathlib import Path
from dla.storage.files import open_folder_aside, write_files
folder = Path(sys.argv[1])
for i in range(10**6):
    letter = bytes([65 + i % 7])
    write_files({folder / "a": letter * 300_000, folder / "b": letter * 300_000})
    print(i, flush=True)
"""


def test_two_writers_never_meet_and_a_killed_one_leaves_what_is_known(folder: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(folder)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for turn in range(200):
            for name in "ab":
                data = (folder / name).read_bytes()
                assert (len(data), len(set(data))) == (300_000, 1)
            if turn == 100:
                writers[0].send_signal(signal.SIGKILL)
        assert writers[1].poll() is None
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    left = set(names(folder)) - {"a", "b"}
    assert all(is_leftover(name) and name[-2:] in ("-a", "-b") for name in left)
    remove_leftovers(folder)
    assert names(folder) == ["a", "b"]


def test_what_is_left_is_removed_and_nothing_else(folder: Path) -> None:
    (folder / ".part-0123abcd-x").mkdir()
    (folder / ".part-0123abcd-x" / "y").touch()
    (folder / ".part-4567abcd-z").touch()
    for name in ("a.part", "part-x", ".partial"):
        (folder / name).touch()
    remove_leftovers(folder, alone=True)
    remove_leftovers(folder / "gone", alone=True)
    assert names(folder) == [".partial", "a.part", "part-x"]


def killed(write: Callable[[], object], monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Run `write` in a process of its own that is killed at the rename that follows `after` others."""
    left = [after]
    replace = Path.replace

    def kill(self_: Path, target: Any) -> Any:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return replace(self_, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", kill)
        if not (child := os.fork()):
            write()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_the_next_writer_removes_what_a_killed_one_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(lambda: write_files({folder / "a": b"1", folder / "b": b"2"}), monkeypatch, after=1)
    assert [name[-2:] for name in names(folder)] == ["-b", "a"]
    monkeypatch.setattr(files, "_tidied", set())  # as in another process
    write_file(folder / "c", b"3")
    assert names(folder) == ["a", "c"]


def test_what_a_living_process_writes_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_aside(folder / "a") as file, open_folder_aside(folder / "b") as aside:
        file.write(b"1")
        (aside / "x").write_bytes(b"2")
        read, write = os.pipe()
        if not (child := os.fork()):
            remove_leftovers(folder)
            os.write(write, str(len(names(folder))).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 10) == b"2"
    os.close(read)
    os.close(write)
    assert names(folder) == ["a", "b"]


def test_another_machine_s_are_removed_when_they_are_a_day_old(folder: Path) -> None:
    for name in ("new", "old"):
        (folder / f".part-0123456789ab-{name}").touch()
    then = time.time() - 25 * 3600
    os.utime(folder / ".part-0123456789ab-old", (then, then))
    remove_leftovers(folder)
    assert names(folder) == [".part-0123456789ab-new"]


def test_a_file_system_without_fsync_of_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    fsync_dir(folder)
    with pytest.raises(OSError, match="Invalid argument"):
        write_file(folder / "a", b"1")  # of a file it is an error


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is not valid JSON: "),
        (b'{"a": 1', "is not valid JSON: "),
        (b'{"a": "\xff"}', "is not valid JSON: "),
        (b"[" * 100_000, "is not valid JSON: "),
        (b"9" * 10_000, "is not valid JSON: "),
        (b"[1]", "is not a JSON object."),
        (b"null", "is not a JSON object."),
    ],
)
def test_what_is_no_json_object(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(data)
    for read in (lambda: read_json(path), lambda: parse_object(data, str(path))):
        with pytest.raises(DamagedError) as raised:
            read()
        assert str(raised.value).startswith(f"{path} {said}")


def test_a_json_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "gone" / "deeper"):
        with pytest.raises(UnavailableError, match=f"^{path} does not exist"):
            read_json(path)
    with pytest.raises(UnavailableError, match=r"cannot be read: Is a directory"):
        read_json(tmp_path)
    (tmp_path / "f").write_text(json.dumps({"a": "b" * 100}))
    assert read_json(tmp_path / "f", 200) == {"a": "b" * 100}
    with pytest.raises(DamagedError, match=r"f has 109 bytes. Allowed: up to 50\."):
        read_json(tmp_path / "f", 50)


def test_fields() -> None:
    root = JsonObject({"n": 3, "yes": True, "text": "t", "in": {"x": [1]}, "none": None}, "f")
    assert root.get("n", int, "a number", lambda n: n > 2) == 3
    assert root.get("yes", bool, "true or false") is True
    assert root.get("none", int, "a number", default=7) == root.get("gone", int, "a number", default=7) == 7
    assert root.object("in").get("x", list, "a list") == [1]
    assert root.object("gone").fields == {}
    for take, said in (
        (lambda: root.get("n", int, "above 3", lambda n: n > 3), "n is 3. Allowed: above 3."),
        (lambda: root.get("yes", int, "a number"), "yes is true. Allowed: a number."),
        (lambda: root.get("n", str, "a name"), "n is a number. Allowed: a name."),
        (lambda: root.get("text", int, "a number"), 'text is "t". Allowed: a number.'),
        (lambda: root.get("none", int, "a number"), "none is missing. Allowed: a number."),
        (lambda: root.object("n"), "n is a number. Allowed: an object."),
        (lambda: root.object("in").get("x", str, "a name"), "in.x is a list. Allowed: a name."),
    ):
        with pytest.raises(DamagedError) as raised:
            take()
        assert str(raised.value) == f"f: {said}"
