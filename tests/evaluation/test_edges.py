"""`dla validate` of boundary networks, of maps of other programs, and of annotators."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.cli import main
from dla.errors import UnavailableError
from dla.evaluation.dense_html import write_boundaries_report
from dla.evaluation.dense_text import boundaries_text
from dla.evaluation.edges import validate_annotators, validate_boundaries, validate_maps
from dla.options import BoundaryOptions
from support.flat_networks import edge_detector

PLAIN = BoundaryOptions(thresholds=5, nms=False)


def rows(top: int) -> np.ndarray:
    lines = np.zeros((60, 80), bool)
    lines[top, 10:70] = lines[45, 10:70] = True
    return lines


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three photos with two annotators each, who agree on the first; the photo shows the first annotator's lines."""
    for folder in ("images", "boundaries", "maps"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        for annotator, top in enumerate((10, 10 + 8 * i)):
            Image.fromarray(rows(top)).save(tmp_path / "boundaries" / f"p{i}_{annotator}.png")
        grey = np.where(rows(10), 255, 0).astype(np.uint8)
        Image.fromarray(np.repeat(grey[..., None], 3, 2)).save(tmp_path / "images" / f"p{i}.png")
        Image.fromarray(grey).save(tmp_path / "maps" / f"p{i}.png")
    return tmp_path


def lines(pixels_1HW3: np.ndarray) -> np.ndarray:
    """Boundaries where the photo is white."""
    return np.where(pixels_1HW3[..., 0] > 128, 20.0, -20.0).astype(np.float32)[:, None]


def test_maps_of_an_annotator_are_right_and_miss_what_the_others_add(data: Path) -> None:
    found = validate_maps(data, data / "maps", options=PLAIN, workers=0).sources[0].evaluation
    assert found.ods.precision == 1
    assert found.photos[0].best.f1 == 1
    assert found.ods.recall == pytest.approx(5 / 6)  # the second annotator of two photos has another upper line
    assert found.ods_interval.low <= found.ods.f1 <= found.ods_interval.high


def test_a_network_is_scored_as_its_maps(data: Path) -> None:
    maps = validate_maps(data, data / "maps", options=PLAIN, workers=0).sources[0].evaluation
    models = validate_boundaries(data, [edge_detector(lines)], options=PLAIN, workers=0)
    assert [p.best for p in models.sources[0].evaluation.photos] == [p.best for p in maps.photos]
    assert models.sources[0].evaluation.curve == maps.curve
    record = models.to_dict()
    assert (record["model"], record["nms_m"], record["thresholds"]) == ("flat", None, 5)


def test_processes_change_no_digit(data: Path) -> None:
    records = [validate_boundaries(data, [edge_detector(lines)], options=PLAIN, workers=n).to_dict() for n in (0, 1, 2)]
    assert repr(records[0]) == repr(records[1]) == repr(records[2])


def test_networks_are_compared(data: Path, tmp_path: Path) -> None:
    models = [edge_detector(lines, "one"), edge_detector(lambda x: -lines(x), "other")]
    both = validate_boundaries(data, models, options=PLAIN, workers=0)
    ((a, b, c),) = both.comparisons
    assert (a, b, c.better) == ("one", "other", 3)
    assert c.ods > 0
    assert "one minus other" in boundaries_text(both)
    write_boundaries_report(tmp_path / "both.html", both)
    text = (tmp_path / "both.html").read_text()
    assert "one has the highest ODS" in text
    assert text.count("<h2>Weakest photos</h2>") == 2


def test_annotators_are_scored_against_each_other(data: Path, tmp_path: Path) -> None:
    found = validate_annotators(data, workers=0)
    own = found.sources[0].evaluation.photos
    assert [photo.best.f1 for photo in own[:2]] == [1, 1]
    assert all(photo.best.f1 < 1 for photo in own[2:])
    record = found.to_dict()
    assert (record["annotators"], record["photos"]) == (6, 3)
    assert record["precision"] == pytest.approx(record["recall"])  # two annotators: what one finds, the other has
    assert "6 annotators' maps of 3 photos, each against the others" in boundaries_text(found)
    write_boundaries_report(tmp_path / "all.html", found)
    assert "<h1>Annotators of" in (tmp_path / "all.html").read_text()


def test_what_cannot_be_scored_is_told(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "maps" / "p0.png").unlink()
    Image.new("RGB", (80, 60)).save(data / "maps" / "p1.png")
    words = ["validate", str(data), "--maps", str(data / "maps"), "--no-nms", "--thresholds", "3", "--workers", "0"]
    assert main([*words, "--format", "json"]) == 1
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert [one["code"] for one in record["unreadable"]] == ["missing_map", "not_a_map"]
    assert (record["schema"], record["maps"]) == ("dla.validate-edges/1", str(data / "maps"))
    assert "3 photos: 2 could not be read and are left out" in err
    Image.new("L", (8, 6)).save(data / "maps" / "p2.png")
    assert main(words) == 1
    assert "none of the 3 photos" in capsys.readouterr().err
    for path in (data / "maps").iterdir():
        path.unlink()
    with pytest.raises(UnavailableError, match=r"maps has no map of the 3 photos of .*, such as p0\.png"):
        validate_maps(data, data / "maps")
    with pytest.raises(UnavailableError, match="does not exist"):
        validate_maps(data, data / "none")
    with pytest.raises(UnavailableError, match=r"has no boundaries/ to validate with"):
        validate_maps(data / "images", data / "maps")


def test_empty_annotators_are_told(data: Path) -> None:
    Image.new("1", (80, 60)).save(data / "boundaries" / "p0_1.png")
    found = validate_maps(data, data / "maps", options=PLAIN, workers=0)
    assert found.notes == ("1 annotators' maps mark no boundary: their recall is 0 of 0",)


def test_one_annotator_alone_agrees_with_nobody(data: Path) -> None:
    for path in (data / "boundaries").glob("*_1.png"):
        path.unlink()
    with pytest.raises(UnavailableError, match="no photo of .* has two annotators"):
        validate_annotators(data)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--maps", "maps", "--annotators"], "--maps and --annotators are both given"),
        (["--annotators", "--model", "m"], "--annotators takes the place of a model"),
        (["--maps", "maps", "--task", "segment"], "--maps is for boundaries, not for --task segment"),
        (["--annotators", "--flip"], "--flip is for segmentation, and this is a validation of boundaries"),
        (["--task", "segment", "--thresholds", "5"], "--thresholds is for boundaries, and this is a validation of seg"),
        (["--task", "edges", "--calibrate"], "--calibrate is for classifiers, and this is a validation of boundaries"),
        (["--annotators", "--thresholds", "0"], "--thresholds is 0. Allowed: 1 to 10,000"),
        ([], "are pairs for boundaries, no classes. Try: --task edges"),
    ],
)
def test_wrong_usage_is_one_sentence(
    data: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(data), *words]) == 2
    assert message in capsys.readouterr().err
