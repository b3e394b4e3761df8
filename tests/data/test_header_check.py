"""What a run looks at before it starts, and the record that it goes on from."""

import io
import json
import shutil
from pathlib import Path

import pytest

from dla.data.dataset import Splits, open_split, open_splits
from dla.data.header_check import check_headers, without_unreadable
from dla.data.split_file import restore_splits, splits_to_dict
from dla.errors import CheckError, UnavailableError, UsageError
from support.photos import CHELSEA, ROCKET, crops, jpeg, troubled_folder


def photos(folder: Path, classes: str, count: int) -> None:
    for c in classes:
        (folder / c).mkdir(parents=True)
        for i in range(count):
            shutil.copy(ROCKET, folder / c / f"{i}.jpg")


@pytest.mark.parametrize("workers", [0, 2])
def test_exactly_what_cannot_be_read_is_found(tmp_path: Path, workers: int) -> None:
    codes = troubled_folder(tmp_path / "a")
    (tmp_path / "a" / "link.jpg").symlink_to("nowhere.jpg")
    png, bmp = CHELSEA.read_bytes(), io.BytesIO()
    crops(1)[0].save(bmp, "BMP")  # a format that marks no end
    (tmp_path / "a" / "cut.bmp").write_bytes(bmp.getvalue()[: len(bmp.getvalue()) // 2])
    (tmp_path / "a" / "whole.bmp").write_bytes(bmp.getvalue())
    (tmp_path / "a" / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "a" / "half a header.jpg").write_bytes(ROCKET.read_bytes()[:100])
    wrong = {name: code for name, code in codes.items() if code}
    wrong |= {"link.jpg": "not_found", "cut.png": "truncated", "cut.bmp": "truncated", "half a header.jpg": "truncated"}
    split = open_split(tmp_path)
    found = check_headers(split, workers)
    assert {Path(fault.name).name: fault.code for fault in found.values()} == wrong
    assert all(split.names[row] == fault.name for row, fault in found.items())


def test_something_behind_the_picture_is_no_fault(tmp_path: Path) -> None:
    """Phones put a film behind the photo."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "film.jpg").write_bytes(jpeg(crops(1)[0]) + b"\0" * 9000)
    assert check_headers(open_split(tmp_path)) == {}


def test_a_few_are_left_out_and_told(tmp_path: Path) -> None:
    photos(tmp_path, "ab", 60)
    (tmp_path / "a" / "7.jpg").write_bytes(b"")
    splits = without_unreadable(open_splits(tmp_path), 0.1)
    assert len(splits.train) + len(splits.val) == 119
    assert [(f.name, f.code) for f in splits.unreadable] == [(f"{tmp_path}/a/7.jpg", "empty_file")]
    assert splits.notes == (f"photos that cannot be read are left out (1): {tmp_path}/a/7.jpg (empty_file)",)
    assert f"{tmp_path}/a/7.jpg" not in [*splits.train.names, *splits.val.names]


def test_many_stop_the_run(tmp_path: Path) -> None:
    photos(tmp_path, "ab", 10)
    for i in range(10):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(b"text")
    with pytest.raises(CheckError) as caught:
        without_unreadable(open_splits(tmp_path))
    assert "8 of 16 photos cannot be read (50.0%; up to 1.0% are left out): " in str(caught.value)
    assert "(not_an_image), ..." in str(caught.value)
    assert len(without_unreadable(open_splits(tmp_path), 0.5).train) == 8


def again(splits: Splits, data: Path) -> Splits:
    return restore_splits(json.loads(json.dumps(splits_to_dict(splits, data))), data)


def same(one: Splits, other: Splits) -> bool:
    parts = [
        (list(s.names), list(s.photos), s.targets_N.tolist(), s.class_ids)
        for x in (one, other)
        for s in (x.train, x.val)
    ]
    return parts[:2] == parts[2:] and one.split_method == other.split_method and one.unreadable == other.unreadable


def test_a_saved_division_comes_back_exactly(tmp_path: Path) -> None:
    photos(tmp_path, "ab", 20)
    (tmp_path / "a" / "7.jpg").write_bytes(b"")
    splits = without_unreadable(open_splits(tmp_path, seed=5), 0.2)
    assert same(again(splits, tmp_path), splits)
    saved = splits_to_dict(splits, tmp_path)
    assert saved["schema"] == "dla.data/1"
    assert set(saved["train"]["photos"]) >= {"b/11.jpg"} or set(saved["val"]["photos"]) >= {"b/11.jpg"}
    moved = tmp_path / "a place of its own"
    moved.mkdir()
    for name in "ab":
        (tmp_path / name).rename(moved / name)
    assert splits_to_dict(restore_splits(saved, moved), moved) | {"unreadable": 0} == saved | {"unreadable": 0}


def test_saved_splits_of_folders_and_tables(tmp_path: Path) -> None:
    photos(tmp_path / "train", "abc", 4)
    photos(tmp_path / "val", "ca", 2)
    splits = open_splits(tmp_path)
    assert same(again(splits, tmp_path), splits)
    table = tmp_path / "photos.csv"
    table.write_text("path,label,split\ntrain/a/0.jpg,a,train\ntrain/b/0.jpg,b,train\ntrain/b/0.jpg,b,train\nx,b,val\n")
    splits = open_splits(table)
    assert len(splits.train) == 3
    assert same(again(splits, table), splits)


def test_what_has_changed_since_is_said(tmp_path: Path) -> None:
    photos(tmp_path, "ab", 10)
    splits = open_splits(tmp_path)
    saved = splits_to_dict(splits, tmp_path)
    shutil.copy(ROCKET, tmp_path / "a" / "new.jpg")
    restored = restore_splits(saved, tmp_path)
    assert same(restored, splits)
    assert restored.notes == (f"{tmp_path}: photos added since this run started are not used (1)",)
    (tmp_path / "a" / "3.jpg").rename(tmp_path / "b" / "33.jpg")
    with pytest.raises(UnavailableError, match=r"photos of this run are missing \(1\), such as a/3.jpg"):
        restore_splits(saved, tmp_path)
    table = tmp_path / "photos.csv"
    table.write_text("path,label\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(10)))
    saved = splits_to_dict(open_splits(table), table)
    table.write_text(table.read_text().replace("4,a", "4,b"))
    with pytest.raises(UsageError, match=r'4 had the class "a" when this run started, and has another now \(1 such'):
        restore_splits(saved, table)
