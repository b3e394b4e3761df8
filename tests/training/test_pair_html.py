"""Runs of segmentation and boundary networks end with a report, intervals, and what their model folder needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.cli import main
from support.photos import crops, jpeg

pytestmark = pytest.mark.slow

TINY = ["--batch-size", "4", "--workers", "0", "--augment.crop", "[32, 40]", "--epochs", "1", "--repeat", "1"]


def write(folder: Path, target: str) -> Path:
    """Eight photos of 60x48 to train with and two to validate with, of two classes or with one annotator."""
    for i, photo in enumerate(crops(10)):
        split = folder / ("train" if i < 8 else "val")
        for name in ("images", target):
            (split / name).mkdir(parents=True, exist_ok=True)
        (split / "images" / f"{i}.jpg").write_bytes(jpeg(photo.resize((60, 48))))
        ids = np.zeros((48, 60), np.uint8)
        ids[:, 30:] = 1
        name, values = (
            (f"{i}.png", ids) if target == "masks" else (f"{i}_0.png", 255 * (np.indices(ids.shape)[1] == 30))
        )
        Image.fromarray(values.astype(np.uint8)).save(split / target / name)
    return folder


@pytest.mark.parametrize(
    ("task", "target", "figure", "titles"),
    [
        ("segment", "masks", "miou", ("Classes", "Confusions", "Weakest photos")),
        ("edges", "boundaries", "ods", ("Precision and recall", "Photos", "Weakest photos")),
    ],
)
def test_a_run_ends_with_its_report(
    task: str, target: str, figure: str, titles: tuple[str, ...], tmp_path: Path
) -> None:
    data, run = write(tmp_path / "data", target), tmp_path / "run"
    words = ["train", str(data), "--task", task, "--output", str(run), "--down-ratio", "8", *TINY]
    assert main(words) == 0
    best = json.loads((run / "run.json").read_text())["best"]
    low, high = best[f"{figure}_interval"]
    assert 0 <= low <= high <= 1
    text = (run / "report.html").read_text()
    for title in (*titles, "Progress", "Training photos as the network sees them", "How to reproduce it"):
        assert f"<h2>{title}</h2>" in text
    assert f"dla {task} new/" in text
    config = json.loads((run / "best" / "config.json").read_text())["dla"]
    assert (config["task"], config["short_side"]) == (task, 48)
    if task == "edges":
        assert config["threshold"] == best["threshold"]
        assert config["results"] == {key: best[key] for key in ("ods", "ois", "ap")}
    assert main(words) == 0  # a finished run says so
    report = tmp_path / "report.html"
    checked = ["validate", str(data), "--model", str(run / "best"), "--report", str(report), "--threads", "1"]
    for batch in ("1", "4"):
        assert main([*checked, "--batch-size", batch, "--workers", batch, "-o", str(tmp_path / f"{batch}.json")]) == 0
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "4.json").read_bytes()
    assert "<h2>Weakest photos</h2>" in report.read_text()
