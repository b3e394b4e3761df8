"""A command that is given a network for something else says which command it wants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dla
from dla.cli import main
from support.photos import CHELSEA
from support.small_models import write_dense

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_dense(folder / "roads", ["road", "sky"], palette=[[1, 2, 3], [200, 0, 9]], short_side=32)
    write_dense(folder / "outlines", ["boundary"], threshold=0.25)
    return folder


def test_it_says_which_command(
    folders: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    photo = str(CHELSEA)
    for words, origin, what in (
        (["predict", photo, "--model", "roads"], "roads", "a segmentation network. Use: dla segment"),
        (["features", photo, "-o", "f.npz", "--model", "roads"], "roads", "a segmentation network. Use: dla segment"),
        (["explain", photo, "-o", "m", "--model", "roads"], "roads", "a segmentation network. Use: dla segment"),
        (["edges", photo, "--model", "roads"], "roads", "a segmentation network. Use: dla segment"),
        (["predict", photo, "--model", "outlines"], "outlines", "a boundary network. Use: dla edges"),
        (["segment", photo, "--model", "outlines"], "outlines", "a boundary network. Use: dla edges"),
        (["segment", photo, "-o", "m", "--model", "shipped:tiny200"], "shipped:tiny200",
         "a classification network. Use: dla predict"),
        (["edges", photo, "--model", "shipped:tiny200"], "shipped:tiny200",
         "a classification network. Use: dla predict"),
    ):  # fmt: skip
        assert main([*words, "-q"]) == 2
        assert capsys.readouterr().err == f"dla: {origin} is {what}\n"
    assert not Path("m").exists()


def test_load_returns_functions_of_photos(folders: Path) -> None:
    segmenter = dla.load(str(folders / "roads"))
    assert isinstance(segmenter, dla.Segmenter)
    answer = segmenter(str(CHELSEA))
    assert isinstance(answer, dla.Segmentation)
    assert answer.mask is not None
    assert answer.mask.shape == (300, 451)
    assert answer.palette == ((1, 2, 3), (200, 0, 9))
    assert sum(answer.shares.values()) == pytest.approx(1)
    assert answer.overlay().height > 300
    first, second = segmenter([str(CHELSEA), np.zeros((20, 30, 3), np.uint8)])
    assert (first.mask == answer.mask).all()
    assert second.mask.shape == (20, 30)
    detector = dla.load(str(folders / "outlines"), task="edges")
    assert isinstance(detector, dla.EdgeDetector)
    boundaries = detector(str(CHELSEA))
    assert isinstance(boundaries, dla.Boundaries)
    assert boundaries.threshold == 0.25
    assert boundaries.probability is not None
    assert boundaries.probability.shape == boundaries.thin.shape == (300, 451)
