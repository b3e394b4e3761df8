"""`dla validate` of segmentation networks: one confusion over the set, at each mask's size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from dla.errors import UnavailableError, UsageError
from dla.evaluation.dense_html import write_segmentation_report
from dla.evaluation.dense_text import segmentation_text
from dla.evaluation.segment import Views, validate_segmentation
from support.flat_networks import by_colour, segmenter

NAMES = ["sky", "road", "car", "void"]
SIZES = ((30, 40), (40, 30), (21, 33), (1, 7))  # height, width


def photos() -> list[np.ndarray]:
    """No pixel has two channels of one value."""
    draw = np.random.default_rng(0)
    return [(3 * draw.integers(0, 85, (*size, 3)) + np.arange(3)).astype(np.uint8) for size in SIZES]


def masks() -> list[np.ndarray]:
    """Ids that the brightest channel often has; 3 is ignored."""
    draw = np.random.default_rng(1)
    drawn = [draw.integers(0, 4, size).astype(np.uint8) for size in SIZES]
    return [np.where(draw.random(ids.shape) < 0.5, photo.argmax(2), ids).astype(np.uint8)
            for ids, photo in zip(drawn, photos(), strict=True)]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for folder in ("train/images", "train/masks", "val/images", "val/masks"):
        (tmp_path / folder).mkdir(parents=True)
    for i, (photo, mask) in enumerate(zip(photos(), masks(), strict=True)):
        Image.fromarray(photo).save(tmp_path / "val" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "val" / "masks" / f"{i}.png")
    (tmp_path / "classes.json").write_text(json.dumps({"classes": NAMES, "ignore_index": 3}))
    return tmp_path


def test_the_figures_are_those_of_scikit_learn(data: Path) -> None:
    found = validate_segmentation(data, [segmenter(NAMES[:3])]).models[0].evaluation
    truth = np.concatenate([mask.ravel() for mask in masks()])
    answer = np.concatenate([photo.argmax(2).ravel() for photo in photos()])
    truth, answer = truth[truth != 3], answer[truth != 3]
    assert np.array_equal(found.counts.confusion_KK, metrics.confusion_matrix(truth, answer, labels=range(3)))
    assert [c.iou for c in found.classes] == pytest.approx(metrics.jaccard_score(truth, answer, average=None))
    assert [c.dice for c in found.classes] == pytest.approx(metrics.f1_score(truth, answer, average=None))
    assert found.pixel_accuracy == pytest.approx(metrics.accuracy_score(truth, answer))
    assert found.ignored == sum(int((mask == 3).sum()) for mask in masks())
    assert found.miou_interval.low < found.miou < found.miou_interval.high


def test_workers_change_no_digit(data: Path) -> None:
    records = [validate_segmentation(data, [segmenter(NAMES[:3])], workers=workers).to_dict() for workers in (0, 1, 2)]
    assert records[0] == records[1] == records[2]


def test_ignored_pixels_change_no_digit(data: Path) -> None:
    """The network sees one pixel at a time, so what is drawn anew under the ignored ones changes theirs alone."""
    before = validate_segmentation(data, [segmenter(NAMES[:3])]).to_dict()
    draw = np.random.default_rng(5)
    for i, (photo, mask) in enumerate(zip(photos(), masks(), strict=True)):
        photo[mask == 3] = draw.integers(0, 256, (int((mask == 3).sum()), 3))
        Image.fromarray(photo).save(data / "val" / "images" / f"{i}.png")
    assert validate_segmentation(data, [segmenter(NAMES[:3])]).to_dict() == before


def test_classes_are_matched_by_name(data: Path) -> None:
    """A network with the classes in another order, and one more, has the same figures."""
    order = [2, 0, 1]

    def turned(pixels: np.ndarray) -> np.ndarray:
        logits = by_colour(pixels)
        return np.concatenate((logits[:, order], np.full_like(logits[:, :1], -1)), 1)

    plain = validate_segmentation(data, [segmenter(NAMES[:3])]).to_dict()
    other = validate_segmentation(data, [segmenter(["car", "sky", "road", "bus"], turned)]).to_dict()
    assert other["miou"] == plain["miou"]
    assert (other["classes_counted"], other["classes_absent"]) == (3, 1)
    assert [other["classes"][order.index(k)]["iou"] for k in range(3)] == [c["iou"] for c in plain["classes"]]
    assert other["classes"][3] | {"label": ""} == {
        "class_id": "bus", "label": "", "pixels": 0, "predicted": 0, "iou": None, "precision": None, "recall": None,
        "dice": None,
    }  # fmt: skip


def test_a_class_that_the_model_lacks_is_named(data: Path) -> None:
    with pytest.raises(UsageError, match="has masks of the class car, which flat does not have. It has: sky, road"):
        validate_segmentation(data, [segmenter(["sky", "road"])])


def test_ids_without_names_are_the_models(data: Path) -> None:
    (data / "classes.json").unlink()
    with pytest.raises(UsageError, match="has masks of the class 0"):
        validate_segmentation(data, [segmenter(NAMES[:3])])  # the masks have an id 3
    found = validate_segmentation(data, [segmenter(NAMES, lambda x: by_colour(np.concatenate((x, x[..., :1]), 3)))])
    assert found.notes == (f"no classes.json names the classes of {data}: the ids in its masks are taken as flat's",)


def test_a_split_alone_has_the_classes_beside_it(data: Path) -> None:
    whole, alone = (validate_segmentation(folder, [segmenter(NAMES[:3])]).to_dict() for folder in (data, data / "val"))
    assert whole | {"data": ""} == alone | {"data": ""}


def test_what_cannot_be_read_is_left_out(data: Path) -> None:
    (data / "val" / "images" / "0.png").write_bytes(b"no photo")
    Image.fromarray(masks()[1][:5]).save(data / "val" / "masks" / "1.png")
    (data / "val" / "masks" / "3.png").unlink()
    found = validate_segmentation(data, [segmenter(NAMES[:3])])
    assert [(Path(one.name).name, one.code) for one in found.unreadable] == [
        ("3.png", "missing_mask"), ("0.png", "not_an_image"), ("1.png", "size_differs"),
    ]  # fmt: skip
    assert found.models[0].evaluation.photos == 1


def test_a_split_without_masks_is_not_validated(data: Path) -> None:
    for mask in (data / "val" / "masks").iterdir():
        mask.unlink()
    with pytest.raises(UnavailableError, match="has no masks to validate with"):
        validate_segmentation(data, [segmenter(NAMES[:3])])
    (data / "val" / "masks").rmdir()
    with pytest.raises(UnavailableError, match=r"val has images/, but no masks/ to validate with"):
        validate_segmentation(data, [segmenter(NAMES[:3])])
    with pytest.raises(UnavailableError, match=r"val has images/, but no masks/ to validate with"):
        validate_segmentation(data / "val", [segmenter(NAMES[:3])])


def test_views_are_averaged(data: Path) -> None:
    """A network whose logits depend on the column: the mirror image has them from the other side."""

    def sided(pixels: np.ndarray) -> np.ndarray:
        return by_colour(pixels) * np.linspace(0, 1, pixels.shape[2], dtype=np.float32)

    found = validate_segmentation(data, [segmenter(NAMES[:3], sided)], views=Views(flip=True)).models[0]
    assert found.with_views is not None
    right = total = 0
    for photo, mask in zip(photos(), masks(), strict=True):
        parts = [sided(photo[None])[0], sided(photo[None, :, ::-1])[0][..., ::-1]]
        shares = sum(np.exp(p - p.max(0)) / np.exp(p - p.max(0)).sum(0) for p in parts)
        right += int((np.argmax(shares, 0) == mask)[mask != 3].sum())
        total += int((mask != 3).sum())
    assert found.with_views.pixel_accuracy == pytest.approx(right / total, abs=0.002)  # probabilities have 16 bits
    assert found.figures()["views"]["flip"] is True
    with pytest.raises(UsageError, match=r"scales is \[0.0\]"):
        Views((0.0,))


def test_scales_are_of_the_size_that_the_network_was_trained_at(data: Path) -> None:
    seen = []

    def noted(pixels: np.ndarray) -> np.ndarray:
        seen.append(min(pixels.shape[1:3]))
        return by_colour(pixels)

    model = segmenter(NAMES[:3], noted, short_side=20)
    validate_segmentation(data, [model], views=Views((0.5, 1.0, 2.0)), workers=0)
    assert seen == [20, 10, 20, 40] * 4


def test_two_models_are_compared_and_shown(data: Path, tmp_path: Path) -> None:
    models = [segmenter(NAMES[:3], origin="one"), segmenter(NAMES[:3], lambda x: -by_colour(x), "other")]
    both = validate_segmentation(data, models)
    ((a, b, c),) = both.comparisons
    assert (a, b, c.better, c.worse) == ("one", "other", 4, 0)
    assert c.miou == both.models[0].evaluation.miou - both.models[1].evaluation.miou
    assert c.miou_interval.low > 0
    record = json.loads(json.dumps(both.to_dict()))
    assert [one["model"] for one in record["models"]] == ["one", "other"]
    assert "one minus other" in segmentation_text(both)
    write_segmentation_report(tmp_path / "both.html", both)
    text = (tmp_path / "both.html").read_text()
    assert text.count("<h2>Weakest photos</h2>") == 2
    assert "one has the highest mIoU" in text
    single = segmentation_text(validate_segmentation(data, models[:1], views=Views((1.0, 2.0), True)))
    assert "scales 1, 2 and mirrored" in single
    assert len([line for line in single.splitlines() if line.startswith("a ")]) == 3
