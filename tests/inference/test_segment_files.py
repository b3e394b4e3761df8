"""Files of masks, read back by others: Pillow, dla's own reader of data, and a decoder of COCO's run lengths."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from dla.data.mask_classes import find_mask_classes
from dla.data.masks import read_mask
from dla.data.pairs import find_pairs
from dla.errors import UnavailableError, UsageError
from dla.inference.classifier import output_name
from dla.inference.coco import open_coco, run_lengths
from dla.inference.segment_files import EdgeFiles, MaskFiles, VocFiles, add_earlier
from dla.inference.segmenter import Segmentation, class_areas
from dla.types import ClassName
from support.photos import CHELSEA
from support.pixel_models import edge_detector, segmenter

PALETTE = [[200, 10, 10], [10, 180, 10], [10, 10, 190]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two photos of one name in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for name, size in (("a", (60, 45)), ("b", (33, 70))):
        (folder / name).mkdir()
        Image.open(CHELSEA).convert("RGB").resize(size).save(folder / name / "ü cat.jpg")
    return [str(folder / name / "ü cat.jpg") for name in "ab"]


def decoded(counts: list[int], height: int, width: int) -> np.ndarray:
    """COCO's run lengths as its format says it: by columns, zeros first."""
    pixels: list[int] = []
    for n, count in enumerate(counts):
        pixels += [n % 2] * count
    assert len(pixels) <= height * width
    pixels += [0] * (height * width - len(pixels))
    return np.array([[pixels[x * height + y] for x in range(width)] for y in range(height)], bool)


@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)))
def test_run_lengths_there_and_back(mask_HW: np.ndarray) -> None:
    found = run_lengths(mask_HW)
    assert set(found) == set(mask_HW.ravel().tolist())
    for k, counts in found.items():
        assert sum(counts) == mask_HW.size or (mask_HW.T.ravel()[-1] == k and sum(counts) == mask_HW.size)
        assert (decoded(counts, *mask_HW.shape) == (mask_HW == k)).all()


def test_a_coco_file_holds_the_masks_with_holes_and_parts(tmp_path: Path) -> None:
    ring = np.zeros((20, 30), np.uint8)
    ring[2:12, 3:14], ring[5:9, 6:10], ring[15:18, 20:29] = 2, 1, 2
    masks = {"ring.jpg": ring, "one.jpg": np.full((3, 5), 1, np.uint8), "caf\udce9.jpg": ring[:, ::-1].copy()}
    classes = tuple(ClassName(f"n{k}", f"name {k}", "") for k in range(3))
    with open_coco(tmp_path / "c.json", classes) as writer:
        for name, mask in masks.items():
            writer.add(name, mask, class_areas(mask, classes))
    found = json.loads((tmp_path / "c.json").read_text())
    assert [c["id"] for c in found["categories"]] == [1, 2, 3]
    assert len({a["id"] for a in found["annotations"]}) == len(found["annotations"]) == 7
    for image, (name, mask) in zip(found["images"], masks.items(), strict=True):
        assert (image["file_name"], image["height"], image["width"]) == (name, *mask.shape)
        back = np.full(mask.shape, 9, np.uint8)
        for a in (a for a in found["annotations"] if a["image_id"] == image["id"]):
            own = decoded(a["segmentation"]["counts"], *a["segmentation"]["size"])
            ys, xs = np.nonzero(own)
            assert a["area"] == len(ys)
            assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            back[own] = a["category_id"] - 1
        assert (back == mask).all()


def test_a_coco_file_without_photos_is_valid(tmp_path: Path) -> None:
    with open_coco(tmp_path / "c.json", ()):
        assert not (tmp_path / "c.json").exists()
    assert json.loads((tmp_path / "c.json").read_text()) == {"categories": [], "annotations": [], "images": []}


def test_masks_are_palette_pictures_of_8_bits(photos: list[str], tmp_path: Path) -> None:
    model = segmenter(palette=PALETTE)
    files = MaskFiles(tmp_path / "out", model.classes)
    files.folder.mkdir()
    for path in photos:
        record = model(path, probabilities=True)
        files.write(record)
        name = f"ü cat-{output_name(path)[-8:]}"
        assert record.to_dict()["files"] == record.files == {
            "mask": f"{name}.mask.png", "overlay": f"{name}.overlay.png", "probabilities": f"{name}.npz"
        }  # fmt: skip
        data = (tmp_path / "out" / record.files["mask"]).read_bytes()
        assert (data[24], data[25]) == (8, 3)  # bits and colour type of a PNG
        image = Image.open(io.BytesIO(data))
        assert (np.asarray(image) == record.mask).all()
        assert (np.asarray(image.convert("RGB")) == np.array(PALETTE)[record.mask]).all()
        with np.load(tmp_path / "out" / record.files["probabilities"]) as found:
            assert (found["probabilities"] == record.probabilities).all()
            assert found["class_ids"].tolist() == ["red", "green", "blue"]
        with Image.open(tmp_path / "out" / record.files["overlay"]) as overlay:
            assert overlay.height > image.height
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_ids_above_255_come_back(tmp_path: Path) -> None:
    mask = np.arange(300, dtype=np.uint16).reshape(15, 20)
    record = Segmentation(
        "a.jpg", mask, (), Image.new("RGB", (20, 15)), palette=tuple((k % 256, 0, 0) for k in range(300))
    )
    files = MaskFiles(tmp_path, ())
    files.write(record)
    assert (np.asarray(Image.open(tmp_path / record.files["mask"])) == mask).all()


def test_vocs_layout_is_read_by_the_reader_of_data(photos: list[str], tmp_path: Path) -> None:
    model = segmenter()
    files = VocFiles(tmp_path, model.classes, model.palette)
    files.start()
    records = [model(path) for path in photos]
    for record in records:
        files.write(record)
    files.finish([output_name(path) for path in photos])
    classes = find_mask_classes([tmp_path])
    assert classes is not None
    assert classes.class_ids == ("red", "green", "blue")
    (source,) = find_pairs(tmp_path, "segment").values()
    assert source.unpaired == []
    by_photo = {pair.photo: pair.targets for pair in source.pairs}
    for record in records:
        (target,) = by_photo[str(tmp_path / record.files["photo"])]
        assert (read_mask(target, classes).ids_HW == record.mask).all()
        saved = np.asarray(Image.open(tmp_path / record.files["photo"]), float)
        assert np.abs(saved - np.asarray(record.photo, float)).mean() < 4
    stems = (tmp_path / "ImageSets/Segmentation/default.txt").read_text().splitlines()
    assert stems == [Path(record.files["mask"]).stem for record in records]


@pytest.mark.parametrize(
    ("names", "palette", "message"),
    [
        (["a:b", "c"], ((0, 0, 0), (1, 1, 1)), "the class 'a:b' cannot stand in labelmap.txt"),
        (["#a", "c"], ((0, 0, 0), (1, 1, 1)), "the class '#a' cannot"),
        (["a\nb", "c"], ((0, 0, 0), (1, 1, 1)), "cannot stand"),
        (["a", "b"], ((1, 1, 1), (1, 1, 1)), "two classes of this network have one colour"),
        ([str(k) for k in range(256)], (), "holds up to 255 classes, and this network has 256"),
    ],
)
def test_what_vocs_layout_cannot_hold(names: list[str], palette: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        VocFiles(tmp_path, tuple(ClassName(name, name, "") for name in names), palette)


def test_boundary_maps_come_back(photos: list[str], tmp_path: Path) -> None:
    record = edge_detector()(photos[0], threshold=0.3)
    EdgeFiles(tmp_path).write(record)
    assert sorted(record.files) == ["edges", "lines", "thin"]
    for kind, values in (("edges", record.probability), ("thin", record.thin), ("lines", record.lines)):
        image = Image.open(tmp_path / record.files[kind])
        assert image.mode == ("1" if kind == "lines" else "L")
        assert (np.asarray(image) == values).all()


def test_a_mask_that_is_gone_or_changed_is_said(tmp_path: Path) -> None:
    record = {"path": "a.jpg", "width": 4, "height": 3, "files": {"mask": "a.mask.png"}}
    classes = (ClassName("a", "a", ""), ClassName("b", "b", ""))
    with open_coco(tmp_path / "c.json", classes) as writer:
        for mask in (None, np.zeros((4, 4), np.uint8), np.full((3, 4), 2, np.uint8)):
            if mask is not None:
                Image.fromarray(mask).save(tmp_path / "a.mask.png")
            with pytest.raises(UnavailableError, match=r"a\.mask\.png is not the mask of a\.jpg any more"):
                add_earlier(writer, tmp_path, [record], classes)
        Image.fromarray(np.ones((3, 4), np.uint8)).save(tmp_path / "a.mask.png")
        add_earlier(writer, tmp_path, [record], classes)
    assert len(json.loads((tmp_path / "c.json").read_text())["annotations"]) == 1
