"""The classes of masks, from classes.json, labelmap.txt and the ids that are there."""

import json
from pathlib import Path
from typing import Any

import pytest

from dla.data.mask_classes import UNKNOWN, MaskClasses, classes_of_ids, find_mask_classes
from dla.errors import DamagedError, UsageError


def write(folder: Path, **fields: Any) -> None:
    (folder / "classes.json").write_text(json.dumps(fields))


def test_the_last_class_may_be_the_ignored_one(tmp_path: Path) -> None:
    write(tmp_path, classes=["sky", "road", "void"], colors=[[1, 2, 3], [4, 5, 6], [0, 0, 0]], ignore_index=2, note="x")
    found = find_mask_classes([tmp_path])
    assert found == MaskClasses(("sky", "road"), (0, 1), 2, ((1, 2, 3), (4, 5, 6)), ((0, 0, 0),))
    assert found.lookup()[:4].tolist() == [0, 1, 2, UNKNOWN]
    assert found.known() == "0 to 1 and 2 (ignored)"


def test_without_more_255_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, classes=["sky", "road"])
    found = find_mask_classes([tmp_path, tmp_path / "train"])
    assert found == MaskClasses(("sky", "road"), (0, 1))
    assert found.lookup()[[0, 1, 2, 254, 255]].tolist() == [0, 1, UNKNOWN, UNKNOWN, 255]


def test_cvats_label_map(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat: 128,0,0::\n\n")
    found = find_mask_classes([tmp_path])
    assert found is not None
    assert (found.class_ids, found.stored_ids, found.ignore_index) == (("background", "cat"), (0, 1), 255)
    assert (found.colors, found.ignored_colors) == (((0, 0, 0), (128, 0, 0)), ((224, 224, 192),))


def test_no_file_names_no_classes(tmp_path: Path) -> None:
    assert find_mask_classes([tmp_path]) is None


def test_two_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path, classes=["a"])
    write(tmp_path / "train", classes=["a"])
    with pytest.raises(UsageError, match=r"both .*classes\.json and .*train/classes\.json name the classes"):
        find_mask_classes([tmp_path, tmp_path / "train"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "classes is missing. Allowed: names of classes"),
        ({"classes": []}, r"classes is \[\]"),
        ({"classes": ["a", 1]}, "Allowed: names of classes"),
        ({"classes": ["a", "b", "a"]}, "the class a is there twice"),
        ({"classes": ["a", "b"], "colors": [[1, 2, 3]]}, "it has 2 classes and 1 colors"),
        ({"classes": ["a", "b"], "colors": [[1, 2, 3], [1, 2, 3]]}, r"the color \(1, 2, 3\) is there twice"),
        ({"classes": ["a", "b"], "colors": [[1, 2, 3], [1, 2, 300]]}, "colors is "),
        ({"classes": ["a", "b", "c"], "ignore_index": 1}, 'ignore_index is 1, which is the class "b". Allowed: an id'),
        ({"classes": ["a"], "ignore_index": 0}, 'its only class, "a", is the ignored one'),
        ({"classes": ["a"], "ignore_index": -1}, "ignore_index is -1. Allowed: an id from 0 to 65535"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    write(tmp_path, **fields)
    with pytest.raises(DamagedError, match=message):
        find_mask_classes([tmp_path])


@pytest.mark.parametrize("line", ["cat", "cat:1,2", "cat:1,2,300::", ":1,2,3::", "cat:red"])
def test_a_line_that_is_no_label_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "labelmap.txt").write_text(f"# head\n{line}\n")
    with pytest.raises(DamagedError, match="labelmap.txt, line 2: "):
        find_mask_classes([tmp_path])


def test_found_ids_are_the_classes_and_that_is_said() -> None:
    found = classes_of_ids([255, 7, 0, 100])
    assert (found.class_ids, found.stored_ids, found.ignore_index) == (("0", "7", "100"), (0, 7, 100), 255)
    assert found.note == "no classes.json names the classes: the 3 ids in the masks are (0, 7, 100); 255 is ignored"
    assert found.known() == "0, 7, 100 and 255 (ignored)"


def test_0_and_255_alone_are_background_and_foreground() -> None:
    found = classes_of_ids([0, 255])
    assert found.class_ids == ("background", "foreground")
    assert found.lookup()[[0, 1, 255]].tolist() == [0, UNKNOWN, 1]
    assert "two classes, background and foreground" in (found.note or "")


@pytest.mark.parametrize(("ids", "message"), [([255], "no id but 255"), ([], "no id"), (range(300), "hold 299 ids")])
def test_ids_that_are_no_classes_are_refused(ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        classes_of_ids(ids)
