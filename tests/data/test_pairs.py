"""Photos find their masks by name in every layout, and groups are never divided."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dla.data.pairs import (
    annotators_by_stem,
    class_folders,
    divide_groups,
    find_pairs,
    has_pairs,
    open_pair_split,
    open_pair_splits,
)
from dla.data.sources import DataOptions
from dla.errors import DamagedError, UnavailableError, UsageError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3)).save(path)


def images(folder: Path, names: str) -> None:
    for name in names.split():
        image(folder / name)


def shown(data: Path, task: str = "segment") -> dict[str, list[tuple[str, ...]]]:
    """The pairs of each split, as paths relative to the data."""
    return {
        split: [tuple(str(Path(p).relative_to(data)) for p in (pair.photo, *pair.targets)) for pair in source.pairs]
        for split, source in find_pairs(data, task).items()  # type: ignore[arg-type]
    }


def split_folders(data: Path) -> None:
    images(data, "train/images/a.jpg train/images/b.png train/masks/b.tif train/masks/a.png Val/images/c.webp")
    images(data, "Val/masks/c.png notes/d.png")


def flat(data: Path) -> None:
    images(data, "images/x/a.jpg images/b.png masks/b.png masks/x/a.png")


def table(data: Path) -> None:
    images(data, "one/a.jpg two/mask_of_a.png")
    (data / "list.csv").write_text("image,mask,split\none/a.jpg,two/mask_of_a.png,train\n")


def voc(data: Path) -> None:
    images(data, "JPEGImages/a.jpg JPEGImages/b.jpg JPEGImages/c.jpg SegmentationClass/a.png SegmentationClass/b.png")
    (data / "ImageSets" / "Segmentation").mkdir(parents=True)
    (data / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (data / "ImageSets" / "Segmentation" / "val.txt").write_text("b\n")


def cityscapes(data: Path) -> None:
    for split, stem in (("train", "bonn/bonn_1"), ("val", "ulm/ulm_2")):
        image(data / "leftImg8bit" / split / f"{stem}_leftImg8bit.png")
        image(data / "gtFine" / split / f"{stem}_gtFine_labelTrainIds.png")
        image(data / "gtFine" / split / f"{stem}_gtFine_color.png")


LAYOUTS: dict[str, tuple[Callable[[Path], None], dict[str, list[tuple[str, ...]]]]] = {
    "split folders": (
        split_folders,
        {
            "train": [("train/images/a.jpg", "train/masks/a.png"), ("train/images/b.png", "train/masks/b.tif")],
            "val": [("Val/images/c.webp", "Val/masks/c.png")],
        },
    ),
    "flat": (flat, {"": [("images/b.png", "masks/b.png"), ("images/x/a.jpg", "masks/x/a.png")]}),
    "voc": (
        voc,
        {
            "train": [("JPEGImages/a.jpg", "SegmentationClass/a.png")],
            "val": [("JPEGImages/b.jpg", "SegmentationClass/b.png")],
        },
    ),
    "cityscapes": (
        cityscapes,
        {
            "train": [
                ("leftImg8bit/train/bonn/bonn_1_leftImg8bit.png", "gtFine/train/bonn/bonn_1_gtFine_labelTrainIds.png")
            ],
            "val": [("leftImg8bit/val/ulm/ulm_2_leftImg8bit.png", "gtFine/val/ulm/ulm_2_gtFine_labelTrainIds.png")],
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_paired_by_name(tmp_path: Path, layout: str) -> None:
    write, expected = LAYOUTS[layout]
    write(tmp_path)
    assert shown(tmp_path) == expected
    assert not any(source.unpaired for source in find_pairs(tmp_path, "segment").values())


def test_a_table_names_both(tmp_path: Path) -> None:
    table(tmp_path)
    sources = find_pairs(tmp_path / "list.csv", "segment")
    (pair,) = sources["train"].pairs
    assert (pair.photo, pair.targets) == (str(tmp_path / "one/a.jpg"), (str(tmp_path / "two/mask_of_a.png"),))
    with (tmp_path / "list.csv").open("a") as file:
        file.write("one/a.jpg,two/none.png,train\none/none.jpg,two/mask_of_a.png,train\n")
    unpaired = find_pairs(tmp_path / "list.csv", "segment")["train"].unpaired
    assert [one.kind for one in unpaired] == ["missing_mask", "missing_image"]
    (tmp_path / "list.csv").write_text("image,mask\none/a.jpg,\n")
    with pytest.raises(DamagedError, match="line 2: the mask is empty"):
        find_pairs(tmp_path / "list.csv", "segment")
    (tmp_path / "list.csv").write_text("image,label\none/a.jpg,dog\n")
    with pytest.raises(UsageError, match='has no column "mask". It has: image, label'):
        find_pairs(tmp_path / "list.csv", "segment")


def test_annotators_are_found_by_the_stem_before_the_last_line(tmp_path: Path) -> None:
    images(tmp_path, "images/12.webp images/12_b.webp images/13.webp boundaries/12_0.png boundaries/12_10.png")
    images(tmp_path, "boundaries/12_b_0.png boundaries/14_0.png")
    assert shown(tmp_path, "edges") == {
        "": [
            ("images/12.webp", "boundaries/12_0.png", "boundaries/12_10.png"),
            ("images/12_b.webp", "boundaries/12_b_0.png"),
        ]
    }
    unpaired = find_pairs(tmp_path, "edges")[""].unpaired
    assert [(one.kind, [Path(name).name for name in one.names]) for one in unpaired] == [
        ("missing_annotators", ["13.webp"]),
        ("missing_image", ["14_0.png"]),
    ]
    assert {stem: len(paths) for stem, paths in annotators_by_stem(tmp_path / "boundaries").items()} == {
        "12": 2, "12_b": 1, "14": 1,
    }  # fmt: skip


def test_files_that_make_no_pair_are_named(tmp_path: Path) -> None:
    images(
        tmp_path, "images/a.jpg images/b.jpg images/b.png images/c.jpg masks/b.png masks/c.png masks/c.tif masks/d.png"
    )
    (source,) = find_pairs(tmp_path, "segment").values()
    assert source.pairs == []
    assert [(one.kind, one.message) for one in source.unpaired] == [
        ("missing_mask", "there is no mask called a"),
        ("two_images", "2 photos are called b, so the mask belongs to neither"),
        ("two_masks", "2 masks are called c"),
        ("missing_image", "no photo is called d"),
    ]


def test_pairs_are_told_from_classes(tmp_path: Path) -> None:
    assert has_pairs(tmp_path) is None
    assert has_pairs(tmp_path / "none") is None
    image(tmp_path / "train" / "images" / "a.png")
    assert has_pairs(tmp_path) is None
    image(tmp_path / "train" / "boundaries" / "a_0.png")
    assert has_pairs(tmp_path) == "edges"
    images(tmp_path, "images/a.png masks/a.png")
    assert has_pairs(tmp_path) == "segment"
    assert class_folders(tmp_path) == [tmp_path, tmp_path / "train"]
    assert class_folders(tmp_path / "list.csv") == class_folders(tmp_path)


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ({"info": {}, "annotations": []}, "looks like COCO polygons: pycocotools"),
        ({"shapes": [], "imagePath": "a.jpg"}, "looks like labelme's"),
        ({}, "images/ and masks/ alone"),
    ],
)
def test_another_layout_is_refused_with_what_converts_it(tmp_path: Path, record: dict[str, object], hint: str) -> None:
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=hint):
        find_pairs(tmp_path, "segment")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not exist"):
        find_pairs(tmp_path / "none", "segment")
    (tmp_path / "masks").mkdir()
    image(tmp_path / "train" / "masks" / "a.png")
    with pytest.raises(UsageError, match=r"has masks/, but no images/"):
        find_pairs(tmp_path, "segment")
    images(tmp_path, "train/images/a.png test/images/b.png")
    with pytest.raises(UsageError, match="has train. Both train and val are needed"):
        open_pair_splits(tmp_path, "segment")
    with pytest.raises(UnavailableError, match=r"test has images/, but no masks/ to validate with"):
        open_pair_split(tmp_path, "segment")
    (tmp_path / "test" / "masks").mkdir()
    with pytest.raises(UnavailableError, match="test has no masks to validate with"):
        open_pair_split(tmp_path, "segment")
    with pytest.raises(UsageError, match="test has no photo with masks"):
        open_pair_splits(tmp_path, "segment")


def test_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    split_folders(tmp_path)
    splits = open_pair_splits(tmp_path, "segment")
    assert (len(splits.train.pairs), len(splits.val.pairs)) == (2, 1)
    assert splits.split_method == "train and val as they are"
    assert open_pair_split(tmp_path, "segment").pairs == splits.val.pairs


def test_a_group_is_never_in_both_parts(tmp_path: Path) -> None:
    for i in range(30):
        images(tmp_path, f"images/drive{i // 3}_{i}.png masks/drive{i // 3}_{i}.png")
    for seed in range(5):
        splits = open_pair_splits(tmp_path, "segment", group=r"(drive\d+)_", seed=seed)
        train, val = ({Path(n).stem.split("_")[0] for n in part.names} for part in (splits.train, splits.val))
        assert not train & val
        assert (len(splits.train.pairs), len(splits.val.pairs)) == (24, 6)
    assert (
        splits.split_method
        == r"20% of the photos held out for validation, by seed 4, groups by (drive\d+)_ undivided (10)"
    )
    assert open_pair_splits(tmp_path, "segment", group=r"(drive\d+)_", seed=4).val.names == splits.val.names
    assert len(open_pair_splits(tmp_path, "segment", DataOptions(val_share=0.1)).val.pairs) == 3
    with pytest.raises(UsageError, match="all 30 photos are of one group"):
        open_pair_splits(tmp_path, "segment", group="drive")
    with pytest.raises(UsageError, match=r"the group '\(' is not a regular expression"):
        open_pair_splits(tmp_path, "segment", group="(")


@given(st.lists(st.integers(0, 8), min_size=2, max_size=40), st.floats(0.05, 0.9), st.integers(0, 99))
def test_division_by_groups_is_complete_and_does_not_depend_on_order(
    groups: list[int], share: float, seed: int
) -> None:
    keys, names = [f"k{i}" for i in range(len(groups))], [str(g) for g in groups]
    train, val = divide_groups(keys, names, share, seed)
    assert sorted(train + val) == list(range(len(groups)))
    assert not {names[i] for i in train} & {names[i] for i in val}
    assert bool(train)
    assert bool(val) == (len(set(names)) > 1)
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    _, other = divide_groups([keys[i] for i in order], [names[i] for i in order], share, seed)
    assert {order[i] for i in other} == set(val)
