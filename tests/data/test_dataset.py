"""Opening sets of photos: what lies how, and classes matched by name."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dla.data.dataset import DataOptions, open_split, open_splits
from dla.errors import UnavailableError, UsageError
from support.photos import crops, jpeg


def fill(folder: Path, counts: dict[str, int]) -> None:
    """A folder a class, files without content: opening reads none of them."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.jpg").touch()


def test_a_folder_a_class(tmp_path: Path) -> None:
    fill(tmp_path, {"rose": 3, "daisy": 2, "none yet": 0})
    split = open_split(tmp_path)
    assert split.class_ids == ("daisy", "none yet", "rose")
    assert split.targets_N.tolist() == [0, 0, 2, 2, 2]
    assert (
        split.names
        == split.photos
        == [f"{tmp_path}/daisy/{i}.jpg" for i in (0, 1)] + [f"{tmp_path}/rose/{i}.jpg" for i in (0, 1, 2)]
    )
    assert split.class_counts().tolist() == [2, 0, 3]
    assert split.notes == (f"{tmp_path}: 1 of 3 classes have no photos (none yet)",)


def test_rows_taken_keep_their_order(tmp_path: Path) -> None:
    fill(tmp_path, {"rose": 3, "daisy": 2})
    split = open_split(tmp_path).take([4, 0])
    assert [Path(n).parent.name for n in split.names] == ["rose", "daisy"]
    assert split.targets_N.tolist() == [1, 0]


def test_val_is_matched_by_name_not_by_number(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    fill(tmp_path / "val", {"c": 2, "b": 1})
    splits = open_splits(tmp_path)
    assert splits.val.class_ids == splits.train.class_ids == ("a", "b", "c")
    assert splits.val.targets_N.tolist() == [1, 2, 2]
    assert splits.notes == ("val: 1 of 3 classes have no photos (a)",)


def test_classes_are_a_networks_outputs(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 1, "b": 1})
    split = open_split(tmp_path, class_ids=("z", "b", "a"))
    assert split.targets_N.tolist() == [2, 1]
    assert split.class_ids == ("z", "b", "a")
    with pytest.raises(UsageError, match='the class "a" is none of the 2 known ones'):
        open_split(tmp_path, class_ids=("b", "c"))


@pytest.mark.parametrize("counts", [{"rose": 1, "tulip": 1}, {"rose": 1, "tulip": 0}])
def test_a_class_that_train_does_not_have(tmp_path: Path, counts: dict[str, int]) -> None:
    fill(tmp_path / "train", {"rose": 1, "tulips": 1})
    fill(tmp_path / "val", counts)
    with pytest.raises(UsageError, match='val: the class "tulip" is none of the 2 known ones. Nearest: tulips'):
        open_splits(tmp_path)


def test_a_flat_validation_folder_is_explained(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"rose": 1, "tulip": 1})
    fill(tmp_path, {"val": 2})
    with pytest.raises(UsageError, match=r"val has no class folders \(2 photos are directly in it.*CSV"):
        open_splits(tmp_path)


def test_a_flat_validation_folder_one_down_is_explained(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"rose": 1, "tulip": 1})
    fill(tmp_path / "val", {"images": 2})
    with pytest.raises(
        UsageError, match=r'"images" is none of the 2 known ones.*photos of several classes, sort .* CSV'
    ):
        open_splits(tmp_path)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_names_of_the_validation_folder(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", {"a": 1, "b": 1})
    fill(tmp_path / name, {"a": 1, "b": 2})
    splits = open_splits(tmp_path)
    assert len(splits.val) == 3
    assert splits.split_method == f"train and {name} as they are"
    assert len(open_split(tmp_path)) == 3


def test_of_two_the_first_is_taken_and_it_is_said(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 1, "b": 1})
    fill(tmp_path / "test", {"a": 1, "b": 2})
    fill(tmp_path / "validation", {"a": 5, "b": 2})
    splits = open_splits(tmp_path)
    assert len(splits.val) == 7
    assert splits.notes == (f"{tmp_path}: test is not used, validation is",)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    fill(tmp_path, {"bus": 1, "train": 1, "test": 2})
    assert open_split(tmp_path).class_ids == ("bus", "test", "train")


def test_train_alone_is_divided_and_is_nothing_to_validate_on(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 10, "b": 5})
    splits = open_splits(tmp_path, DataOptions(val_share=0.4), seed=3)
    assert splits.val.class_counts().tolist() == [4, 2]
    assert splits.train.class_counts().tolist() == [6, 3]
    assert splits.split_method == "40% of each class held out for validation, by seed 3"
    with pytest.raises(UsageError, match="has only train"):
        open_split(tmp_path)


def test_val_alone_is_nothing_to_learn_from(tmp_path: Path) -> None:
    fill(tmp_path / "val", {"a": 10, "b": 5})
    assert len(open_split(tmp_path)) == 15
    with pytest.raises(UsageError, match="has val, but no train"):
        open_splits(tmp_path)


def test_a_division_does_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    for place in ("here", "there"):
        fill(tmp_path / place, {"a": 20, "b": 20})
    here, there = (open_splits(tmp_path / place).val for place in ("here", "there"))
    assert [os.path.relpath(n, tmp_path / "here") for n in here.names] == [
        os.path.relpath(n, tmp_path / "there") for n in there.names
    ]


def test_what_is_not_a_photo_is_said(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2, "b": 1})
    for name in ("a/x.heic", "a/y.HEIC", "b/readme", "a/.DS_Store", ".hidden/1.jpg", "b/.thumbs/2.jpg", "loose.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    split = open_split(tmp_path)
    assert len(split) == 3
    assert split.class_ids == ("a", "b")
    assert split.notes == (
        f"{tmp_path}: photos outside the class folders are not used (1)",
        f"{tmp_path}: files without the suffix of a photo are not used (.heic 2, no suffix 1)",
    )


def test_folders_in_a_class_belong_to_it_and_odd_names_are_names(tmp_path: Path) -> None:
    names = ["-", "[ab]*", "two words", "line\nbreak", "Ros\u00e9", "ROSE", "rose"]
    fill(tmp_path, dict.fromkeys(names, 1))
    (tmp_path / "rose" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "rose" / "deep" / "er" / "1.jpg").touch()
    split = open_split(tmp_path)
    assert split.class_ids == tuple(sorted(names))
    assert split.class_counts().tolist() == [2 if name == "rose" else 1 for name in sorted(names)]


def test_links_to_class_folders_are_followed_and_deeper_ones_are_not(tmp_path: Path) -> None:
    fill(tmp_path / "store", {"a": 2, "b": 3})
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        (data / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store" / "a" / "round").symlink_to(data)
    (tmp_path / "store" / "a" / "one.jpg").symlink_to(tmp_path / "store" / "b" / "0.jpg")
    assert open_split(data).class_counts().tolist() == [3, 3]


def test_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"-": 2, "b": 1})
    monkeypatch.chdir(tmp_path)
    assert open_split(".").class_counts().tolist() == [2, 1]


def test_parquet_of_encoded_photos(tmp_path: Path) -> None:
    data = [jpeg(c) for c in crops(3)]
    table = pa.table({"image": data, "synset": ["n2", "n1", "n2"], "label": [1, 0, 1]})
    for name in ("train", "val"):
        pq.write_table(table, tmp_path / f"{name}.parquet")
    split = open_split(tmp_path / "train.parquet")
    assert list(split.photos) == data
    assert split.class_ids == ("n1", "n2")
    assert np.array_equal(split.targets_N, [1, 0, 1])
    assert split.names == ["train.parquet#0", "train.parquet#1", "train.parquet#2"]
    by_label = open_splits(tmp_path, DataOptions(label_column="label"))
    assert by_label.train.class_ids == ("0", "1")


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("gone", UnavailableError, "gone does not exist"),
        ("text.txt", UnavailableError, "is neither a folder nor a table"),
        ("flat", UsageError, r"has no class folders \(it has no photos\)"),
        ("one", UsageError, "3 photos to learn from, of fewer than two classes"),
        ("nothing", UsageError, "0 photos to learn from, of fewer than two classes"),
        ("singles", UsageError, "no class has two photos"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, path: str, error: type[Exception], said: str) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "text.txt").touch()
    fill(tmp_path / "one", {"a": 3})
    fill(tmp_path / "nothing", {"a": 0, "b": 0})
    fill(tmp_path / "singles", {"a": 1, "b": 1})
    with pytest.raises(error, match=said):
        open_splits(tmp_path / path)


@pytest.mark.parametrize("train", ["train", "Train", "TRAIN", "training", "Training"])
@pytest.mark.parametrize("val", ["val", "Valid", "VALIDATION", "dev", "Eval", "TEST", "testing"])
def test_usual_words_are_splits_in_any_case(tmp_path: Path, train: str, val: str) -> None:
    fill(tmp_path / train, {"a": 3, "b": 4})
    fill(tmp_path / val, {"a": 1, "b": 2})
    splits = open_splits(tmp_path)
    assert splits.train.class_ids == ("a", "b")
    assert (len(splits.train), len(splits.val)) == (7, 3)


def test_two_spellings_of_one_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "Training", "val"):
        fill(tmp_path / name, {"a": 1, "b": 1})
    with pytest.raises(UsageError, match="Training and train, which both mean the split train"):
        open_splits(tmp_path)


def test_splits_inside_the_classes_are_not_mixed(tmp_path: Path) -> None:
    for name in ("rose", "daisy"):
        fill(tmp_path / name, {"Train": 2, "val": 1})
    with pytest.raises(UsageError, match=r"splits inside the classes \(daisy/Train\). Move them up: train/CLASS"):
        open_splits(tmp_path)


def test_test_is_validated_on_only_where_there_is_no_other(tmp_path: Path) -> None:
    for name, count in {"train": 3, "Testing": 1, "dev": 2}.items():
        fill(tmp_path / name, {"a": count, "b": count})
    splits = open_splits(tmp_path)
    assert len(splits.val) == 4
    assert any("test is not used, dev is" in note for note in splits.notes)


def test_links_to_themselves_cost_nothing_but_themselves(tmp_path: Path) -> None:
    fill(tmp_path, {"rose": 3, "daisy": 2})
    for link in (tmp_path / "loop", tmp_path / "rose" / "loop", tmp_path / "rose" / "loop.jpg"):
        link.symlink_to(link)
    split = open_split(tmp_path)
    assert split.class_ids == ("daisy", "rose")
    assert split.class_counts().tolist() == [2, 4]  # the photo's own record tells what is wrong with loop.jpg


def write_hub_set(folder: Path, sizes: dict[str, tuple[int, ...]]) -> None:
    """Files as `datasets` pushes them to the hub: each split in shards, labels as numbers with names."""
    folder.mkdir(parents=True)
    info = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for split, counts in sizes.items():
        for shard, count in enumerate(counts):
            rows = [{"bytes": f"{split} {shard} {i}".encode(), "path": None} for i in range(count)]
            table = pa.table({"image": rows, "label": [i % 2 for i in range(count)]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
            pq.write_table(table, folder / f"{split}-{shard:05}-of-{len(counts):05}.parquet")


@pytest.mark.parametrize("inside", ["", "data"])
def test_the_hub_s_files_are_splits_and_their_shards_come_in_order(tmp_path: Path, inside: str) -> None:
    root = tmp_path / "set"
    write_hub_set(root / inside, {"train": (3, 2), "validation": (2,), "test": (2,)})
    (root / "README.md").write_text("x")
    splits = open_splits(root)
    order = [b"train 0 0", b"train 0 1", b"train 0 2", b"train 1 0", b"train 1 1"]
    assert list(splits.train.photos) == order
    assert [
        row.as_py()["bytes"] for path in sorted((root / inside).glob("train-*")) for row in pq.read_table(path)[0]
    ] == order
    assert splits.train.class_ids == ("cat", "dog")
    assert splits.train.targets_N.tolist() == [0, 1, 0, 0, 1]
    assert list(splits.val.photos) == [b"validation 0 0", b"validation 0 1"]
    assert splits.train.names[3] == "train-00001-of-00002.parquet#0"
    assert splits.notes == (f"{root}: test is not used, validation is",)


def test_shards_of_one_split_are_complete_and_of_one_version(tmp_path: Path) -> None:
    write_hub_set(tmp_path / "a", {"train": (2, 2, 2), "validation": (2,)})
    (tmp_path / "a" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(UnavailableError, match=r"2 of the 3 files of the split train \(missing: 00001\)"):
        open_splits(tmp_path / "a")
    write_hub_set(tmp_path / "b", {"train": (2, 2), "validation": (2,)})
    (tmp_path / "b" / "train-00000-of-00002.parquet").rename(tmp_path / "b" / "train-00000-of-00001.parquet")
    with pytest.raises(UsageError, match="several versions of the split train"):
        open_splits(tmp_path / "b")
    write_hub_set(tmp_path / "c", {"train": (4,)})  # nothing to validate on: divided as any other set
    assert open_splits(tmp_path / "c").split_method.startswith("20% of each class")
