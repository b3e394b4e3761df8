"""Which photos an input stands for, against sorted path listings."""

import contextlib
import glob
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dla.errors import ImageError, UsageError
from dla.images.decode import read_photo
from dla.images.find import PHOTO_SUFFIXES, PhotoFinder, read_path_list


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a/2.PNG", "a/10.webp", "a-b/1.tif", "c/d/e.avif", "c/x.txt", ".hidden/1.jpg", "a/.1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    return tmp_path


def test_a_folder_is_walked_in_the_order_of_its_paths(tree: Path) -> None:
    finder = PhotoFinder([str(tree)])
    visible = [p for p in tree.rglob("*") if p.is_file() and not any(s.startswith(".") for s in p.parts[-2:])]
    expected = sorted(p for p in visible if p.suffix != ".txt" and "loop" not in p.parts)
    assert [Path(p) for p in finder] == expected
    assert len(expected) == 5
    assert finder.skipped == 2  # the text and the hidden file; hidden folders are not entered


@pytest.mark.parametrize("pattern", ["**/*.webp", "*.jpg", "a*/*"])
def test_patterns(tree: Path, pattern: str) -> None:
    found = list(PhotoFinder([str(tree / pattern)]))
    suffixes = {".jpg", ".png", ".webp", ".tif"}
    matched = [p for p in tree.glob(pattern) if "loop" not in p.parts and not p.name.startswith(".")]
    assert found == [str(p) for p in sorted(matched) if p.suffix.lower() in suffixes]
    assert found


def test_a_file_named_outright_is_always_given(tree: Path) -> None:
    odd = tree / "[1].jpg"
    odd.touch()
    inputs = [str(tree / "c" / "x.txt"), str(tree / "no such file"), str(odd)]
    assert list(PhotoFinder(inputs)) == inputs


def test_lines_keep_their_spaces_and_lose_their_ends() -> None:
    assert list(PhotoFinder(["-"], ["a b.jpg\n", " c.jpg\r\n", "\n", "d.jpg"])) == ["a b.jpg", " c.jpg", "d.jpg"]


def test_what_gives_nothing_is_remembered(tree: Path) -> None:
    (tree / "empty").mkdir()
    inputs = [str(tree / "empty"), str(tree / "*.bmp"), str(tree / "a")]
    finder = PhotoFinder(inputs)
    assert len(list(finder)) == 2
    assert finder.unmatched == inputs[:2]


@given(st.lists(st.sampled_from(["b.jpg", "a/2.PNG", "gone.jpg"]), max_size=6))
def test_order_and_repetition_are_the_users(names: list[str]) -> None:
    assert list(PhotoFinder(names)) == names


def test_a_folder_that_cannot_be_listed_becomes_an_input(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(folder: str) -> object:
        if os.path.basename(folder) == "a":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert str(tree / "a") in list(PhotoFinder([str(tree)]))
    assert str(tree / "a") in list(PhotoFinder([str(tree / "**" / "*.PNG")]))


def test_pipes_in_a_folder_are_no_photos_and_broken_links_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert list(PhotoFinder([str(tmp_path)])) == [str(tmp_path / "broken.jpg")]


def odd_links(folder: Path) -> set[str]:
    """Good photos among links that lead nowhere; what must be found."""
    (folder / "deep" / "er").mkdir(parents=True)
    names = ["a.jpg", "m.jpg", "through.jpg", "long.jpg", "z.jpg", "deep/er/b.jpg", "deep/er/self.jpg"]
    for name in ("a.jpg", "z.jpg", "deep/er/b.jpg"):
        (folder / name).write_bytes(b"x")
    (folder / "m.jpg").symlink_to(folder / "m.jpg")
    (folder / "through.jpg").symlink_to(folder / "a.jpg" / "x.jpg")
    (folder / "long.jpg").symlink_to("y" * 300 + ".jpg")
    (folder / "deep" / "er" / "self.jpg").symlink_to("self.jpg")
    return {str(folder / name) for name in names}


@pytest.mark.parametrize("pattern", ["", "**/*.jpg", "**/*"])
def test_a_link_that_leads_nowhere_costs_itself_alone(tmp_path: Path, pattern: str) -> None:
    wanted = odd_links(tmp_path)
    finder = PhotoFinder([str(tmp_path / pattern)])
    assert set(finder) == wanted
    for path in wanted:
        with contextlib.suppress(ImageError):
            read_photo(path)


@given(st.lists(st.sampled_from(["a", "b.jpg", "**", "*", "*.jpg", "[ab]*", "?.png", ".h"]), min_size=1, max_size=4))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_patterns_mean_what_pathlib_means(tmp_path: Path, parts: list[str]) -> None:
    for name in ("a/b.jpg", "a/a/b.jpg", "a/.h/b.jpg", "b.jpg", "x.png", ".h/b.jpg", "a/a/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pattern = os.path.join(*parts)
    if not glob.has_magic(pattern):
        return
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    theirs = {
        str(match)
        for match in tmp_path.glob(pattern)
        if not match.is_dir() and not any(p.startswith(".") for p in match.relative_to(tmp_path).parts[fixed:])
        and match.suffix in PHOTO_SUFFIXES
    }  # fmt: skip
    assert set(PhotoFinder([str(tmp_path / pattern)])) == theirs


@pytest.mark.parametrize(
    ("data", "paths"),
    [
        (b"a.jpg\nb c.jpg\r\n\n", ["a.jpg", "b c.jpg"]),
        (b"\xef\xbb\xbfa.jpg\nb.jpg", ["a.jpg", "b.jpg"]),
        (b"a.jpg\0b\nc.jpg\0", ["a.jpg", "b\nc.jpg"]),
        (b"a.jpg\0", ["a.jpg"]),
        (b"", []),
    ],
)
def test_a_list_of_paths(data: bytes, paths: list[str]) -> None:
    assert list(PhotoFinder(["-"], read_path_list(io.BytesIO(data)))) == paths


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a.jpg\nb.jpg\n".encode("utf-16"), "UTF-16"),
        ("photo.jpg\n".encode("utf-16-le"), "UTF-16"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "is a photo, not a list of paths"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a photo, not a list of paths"),
    ],
)
def test_what_is_no_list_of_paths_is_one_sentence(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        list(read_path_list(io.BytesIO(data)))
