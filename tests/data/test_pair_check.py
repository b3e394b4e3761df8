"""`check_pairs`: every kind of fault is found and named, and nothing else is; a run starts without faulty pairs."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.data.dataset import Unreadable
from dla.data.mask_classes import find_mask_classes
from dla.data.pair_check import PairReport, check_pairs, mask_classes, without_faulty_pairs
from dla.data.pairs import find_pairs, open_pair_splits
from dla.errors import CheckError
from support.photos import crops, jpeg

NAMES = ["sky", "road", "car", "void"]


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [photo.resize((60, 48)) for photo in crops(12)]


def ids_of(photo: Image.Image, seed: int) -> np.ndarray:
    """A mask with pixels of every class."""
    return np.random.default_rng(seed).integers(0, 4, photo.size[::-1]).astype(np.uint8)


@pytest.fixture
def data(tmp_path: Path, photos: list[Image.Image]) -> Path:
    """Eight pairs to train with and four to validate with, and nothing wrong."""
    for i, photo in enumerate(photos):
        folder = tmp_path / ("train" if i < 8 else "val")
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "images" / f"{i}.jpg").write_bytes(jpeg(photo))
        Image.fromarray(ids_of(photo, i)).save(folder / "masks" / f"{i}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES, "ignore_index": 3}))
    return tmp_path


def told(report: PairReport) -> list[tuple[str, str, list[str]]]:
    return [(f.kind, f.severity, [Path(name).name for name, _, _ in f.photos] or list(f.class_ids))
            for f in report.findings]  # fmt: skip


def test_good_pairs_are_fit(data: Path, photos: list[Image.Image]) -> None:
    report = check_pairs(data, "segment", workers=0)
    assert report.passed
    assert report.findings == ()
    assert report.classes == ("sky", "road", "car")
    masks = np.stack([ids_of(photo, i) for i, photo in enumerate(photos[:8])])
    train, val = report.splits
    assert train.pixels == {name: int((masks == k).sum()) for k, name in enumerate(NAMES[:3])}
    assert train.photos == dict.fromkeys(NAMES[:3], 8)
    assert (train.ignored, train.pairs, val.pairs) == (int((masks == 3).sum()), 8, 4)
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def paint(data: Path, name: str, value: int, pixels: int | None = None) -> None:
    """Set the first pixels of a mask, or all, to a value."""
    path = data / name
    with Image.open(path) as image:
        ids = np.asarray(image).copy()
    ids.ravel()[:pixels] = value
    Image.fromarray(ids).save(path)


def repaint(data: Path, pattern: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in data.glob(pattern):
        with Image.open(path) as image:
            ids = change(np.asarray(image).copy())
        Image.fromarray(ids.astype(np.uint8)).save(path)


def unknown(data: Path) -> None:
    for i in range(5):
        paint(data, f"train/masks/{i}.png", 9, 10 + i)


FAULTS: dict[str, tuple[Callable[[Path], object], list[tuple[str, str, list[str]]]]] = {
    "missing mask": (lambda d: (d / "val/masks/9.png").unlink(), [("missing_mask", "error", ["9.jpg"])]),
    "missing image": (lambda d: (d / "val/images/9.jpg").unlink(), [("missing_image", "error", ["9.png"])]),
    "two masks": (
        lambda d: Image.new("L", (60, 48)).save(d / "val/masks/9.tif"), [("two_masks", "error", ["9.png", "9.tif"])],
    ),
    "size": (lambda d: Image.new("L", (48, 60)).save(d / "train/masks/2.png"), [("size_differs", "error", ["2.jpg"])]),
    "tiny": (lambda d: Image.new("L", (1, 1)).save(d / "train/masks/2.png"), [("size_differs", "error", ["2.jpg"])]),
    "unknown id": (unknown, [("unknown_id", "error", [f"{i}.jpg" for i in range(5)])]),
    "lossy": (
        lambda d: (d / "train/masks/2.png").write_bytes(jpeg(Image.new("L", (60, 48)))),
        [("lossy_mask", "error", ["2.jpg"])],
    ),
    "a photo for a mask": (
        lambda d: Image.open(d / "train/images/2.jpg").save(d / "train/masks/2.png"),
        [("not_a_mask", "error", ["2.jpg"])],
    ),
    "broken photo": (lambda d: (d / "train/images/2.jpg").write_bytes(b"x"), [("unreadable", "error", ["2.jpg"])]),
    "broken mask": (lambda d: (d / "train/masks/2.png").write_bytes(b""), [("empty_file", "error", ["2.jpg"])]),
    "ignored": (lambda d: paint(d, "train/masks/2.png", 3), [("all_ignored", "warning", ["2.jpg"])]),
    "absent": (
        lambda d: repaint(d, "train/masks/*.png", lambda ids: np.where(ids == 2, 1, ids)),
        [("absent_class", "error", ["car"])],
    ),
    "absent in val": (
        lambda d: repaint(d, "val/masks/*.png", lambda ids: np.where(ids == 2, 1, ids)),
        [("absent_class", "warning", ["car"])],
    ),
    "one class": (
        lambda d: repaint(d, "val/masks/*.png", lambda ids: ids * 0),
        [("absent_class", "warning", ["road"]), ("absent_class", "warning", ["car"]),
         ("one_class_only", "warning", ["sky"])],
    ),
    "imbalance": (
        lambda d: repaint(d, "train/masks/*.png", lambda ids: np.where(np.arange(ids.size).reshape(ids.shape) < 2, 2,
                                                                       np.where(ids == 2, 1, ids))),
        [("imbalance", "warning", ["car", "road"])],
    ),
    "in two splits": (
        lambda d: (d / "val/images/9.jpg").write_bytes((d / "train/images/2.jpg").read_bytes()),
        [("in_two_splits", "error", ["2.jpg", "9.jpg"])],
    ),
    "twice": (
        lambda d: (d / "train/images/3.jpg").write_bytes((d / "train/images/2.jpg").read_bytes()),
        [("duplicate", "warning", ["2.jpg", "3.jpg"])],
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_nothing_else(data: Path, fault: str) -> None:
    make, expected = FAULTS[fault]
    make(data)
    report = check_pairs(data, "segment", workers=0)
    assert told(report) == expected
    assert report.passed == all(severity != "error" for _, severity, _ in expected)


def test_messages_name_what_there_is(data: Path) -> None:
    unknown(data)
    Image.new("L", (48, 60)).save(data / "val/masks/9.png")
    by_kind = {f.kind: f.message for f in check_pairs(data, "segment", workers=0).findings}
    files = ", ".join(str(data / f"train/masks/{i}.png") for i in range(3))
    assert by_kind["unknown_id"] == f"60 pixels of id 9 in 5 masks ({files}, ...). Known: 0 to 2 and 3 (ignored)"
    assert by_kind["size_differs"] == f"{data}/val/masks/9.png has 48x60 pixels, its photo 60x48"


def test_an_unknown_colour_is_found(data: Path) -> None:
    colors = [[0, 0, 9], [0, 0, 99], [0, 9, 0], [9, 9, 9]]
    (data / "classes.json").write_text(json.dumps({"classes": NAMES, "ignore_index": 3, "colors": colors}))
    pixels = np.zeros((48, 60, 3), np.uint8) + np.array(colors[1], np.uint8)
    pixels[0, :5] = 1, 2, 3
    Image.fromarray(pixels).save(data / "train/masks/2.png")
    (found,) = check_pairs(data, "segment", workers=0).findings
    assert (found.kind, found.severity) == ("unknown_colour", "error")
    assert found.message == f"5 pixels of the colour #010203 in 1 masks ({data}/train/masks/2.png)"


def test_classes_that_no_file_names_are_said(data: Path) -> None:
    (data / "classes.json").unlink()
    report = check_pairs(data, "segment", workers=0)
    assert report.classes == ("0", "1", "2", "3")
    assert [(f.kind, f.severity) for f in report.findings] == [("assumed_classes", "warning")]
    assert mask_classes(data, find_pairs(data, "segment"), 0).class_ids == report.classes


def test_a_run_starts_without_faulty_pairs(data: Path) -> None:
    paint(data, "train/masks/2.png", 9, 3)
    (data / "train/masks/5.png").unlink()
    classes, splits = find_mask_classes([data]), open_pair_splits(data, "segment")
    with pytest.raises(CheckError, match=r"2 of 8 photos have no usable mask .* \(25\.0%; up to 1\.0% are left out\)"):
        without_faulty_pairs(splits, classes, workers=0)
    kept = without_faulty_pairs(splits, classes, 0.3, 0)
    assert [Path(name).name for name in kept.train.names] == ["0.jpg", "1.jpg", "3.jpg", "4.jpg", "6.jpg", "7.jpg"]
    assert kept.val == splits.val
    assert [(Path(one.name).name, one.code) for one in kept.unreadable] == [
        ("2.jpg", "unknown_id"),
        ("5.jpg", "missing_mask"),
    ]
    assert isinstance(kept.unreadable[0], Unreadable)
    assert "pairs with a fault are left out (2)" in kept.notes[-1]


@pytest.fixture
def edges(tmp_path: Path, photos: list[Image.Image]) -> Path:
    """Four photos with two annotators each."""
    for name in ("images", "boundaries"):
        (tmp_path / name).mkdir()
    for i, photo in enumerate(photos[:4]):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(jpeg(photo))
        for k in range(2):
            Image.fromarray(np.random.default_rng(k).random((48, 60)) < 0.1).save(tmp_path / f"boundaries/{i}_{k}.png")
    return tmp_path


EDGE_FAULTS: dict[str, tuple[Callable[[Path], object], list[tuple[str, str, list[str]]]]] = {
    "none": (lambda d: None, []),
    "annotators": (
        lambda d: [(d / f"boundaries/2_{k}.png").unlink() for k in range(2)],
        [("missing_annotators", "error", ["2.jpg"])],
    ),
    "size": (lambda d: Image.new("1", (9, 9)).save(d / "boundaries/2_1.png"), [("size_differs", "error", ["2.jpg"])]),
    "soft": (
        lambda d: Image.fromarray(np.arange(48 * 60).reshape(48, 60).astype(np.uint8)).save(d / "boundaries/2_1.png"),
        [("not_two_valued", "error", ["2.jpg"])],
    ),
    "empty": (lambda d: Image.new("1", (60, 48)).save(d / "boundaries/2_1.png"), [("empty_map", "warning", ["2.jpg"])]),
}


@pytest.mark.parametrize("fault", EDGE_FAULTS)
def test_each_fault_of_boundaries_is_found(edges: Path, fault: str) -> None:
    make, expected = EDGE_FAULTS[fault]
    make(edges)
    report = check_pairs(edges, "edges", workers=0)
    assert told(report) == expected
    assert (report.classes, report.splits[0].maps) == ((), 8 - 2 * (fault == "annotators"))


def test_a_run_starts_without_faulty_maps(edges: Path) -> None:
    Image.new("1", (9, 9)).save(edges / "boundaries/2_1.png")
    kept = without_faulty_pairs(open_pair_splits(edges, "edges"), None, 0.9, 0)
    assert sorted(Path(n).name for part in (kept.train, kept.val) for n in part.names) == ["0.jpg", "1.jpg", "3.jpg"]
