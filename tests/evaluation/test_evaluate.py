"""`dla validate`: the figures of what `dla predict` says, matched by name, on one process or two."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.special
from PIL import Image
from sklearn import metrics

import dla
from dla.cli import main
from dla.data.sources import DataOptions
from dla.evaluation.html import write_report
from dla.evaluation.scores import tta_views
from support.photos import crops, jpeg
from support.small_models import write_small
from support.torchrun import two_ranks

pytestmark = pytest.mark.slow

IDS = ("n01", "n02", "n03", "n04", "n05", "n06", "n07")
LABELS = {c: f"thing {c[-1]}" for c in IDS}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val/ with 30 photos in five classes of seven, and two models that know them; the one is right on many."""
    folder = tmp_path_factory.mktemp("desk")
    for seed, name in enumerate(("one", "other")):
        write_small(folder / name, IDS, seed, LABELS)
    photos = crops(30)
    for i, prediction in enumerate(dla.load(str(folder / "one")).predict(photos, topk=7)):
        first = next(c.index for c in prediction.classes if c.index < 5)
        path = folder / "val" / IDS[first if i % 2 else i // 2 % 5] / f"{i:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photos[i]))
    return folder


def said_by_predict(model: Path, photos: list[Path], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The probabilities (N, K) that `dla predict` gives, and the places of the folders' classes."""
    predictions = list(dla.load(str(model)).predict(photos, topk=len(IDS), **options))
    probabilities = np.zeros((len(photos), len(IDS)))
    for row, prediction in zip(probabilities, predictions, strict=True):
        for c in prediction.classes:
            row[c.index] = c.probability
    probabilities /= probabilities.sum(1, keepdims=True)  # single precision does not quite
    return probabilities, np.array([IDS.index(p.parent.name) for p in photos])


def photos_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.jpg"))


def validate(*words: str | Path) -> int:
    """The command, on one thread as the other tests."""
    return main(["validate", *map(str, words), "--threads", "1", "--workers", "1"])


def record(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> dict[str, Any]:
    assert validate(*words, "--format", "json") == code
    return dict(json.loads(capsys.readouterr().out))


def test_the_figures_are_those_of_what_predict_says(desk: Path) -> None:
    found = dla.validate(desk / "val", str(desk / "one"))
    probabilities, targets = said_by_predict(desk / "one", photos_of(desk / "val"))
    labels = np.arange(len(IDS))
    assert 0 < found.top1 < 1
    assert found.top1 == pytest.approx(metrics.accuracy_score(targets, probabilities.argmax(1)), abs=1e-12)
    theirs = metrics.top_k_accuracy_score(targets, probabilities, k=5, labels=labels)
    assert found.top5 == pytest.approx(theirs, abs=1e-12)
    assert found.evaluation.log_loss == pytest.approx(metrics.log_loss(targets, probabilities, labels=labels), abs=1e-6)
    expected = metrics.confusion_matrix(targets, probabilities.argmax(1), labels=labels)
    np.testing.assert_array_equal(found.evaluation.confusion_KK, expected)
    np.testing.assert_allclose(found.evaluation.sample_results.confidence_N, probabilities.max(1), atol=1e-6)
    assert list(found.split.names) == list(map(str, photos_of(desk / "val")))


def test_one_model_s_record(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, desk / "val", "--model", desk / "one")
    assert found["schema"] == "dla.validate/1"
    assert found["count"] == 30
    assert 0 <= found["top1_interval"][0] <= found["top1"] <= found["top1_interval"][1] <= 1
    assert [c["class_id"] for c in found["classes"]] == list(IDS)
    assert found["classes"][0]["label"] == "thing 1"
    assert np.sum(found["confusion"]) == 30
    assert found["temperature"] == 1
    assert "calibrated" not in found
    assert found["unreadable"] == []


def test_several_models_are_compared(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = record(capsys, desk / "val", "--model", desk / "one", "--model", desk / "other")
    alone = [record(capsys, desk / "val", "--model", desk / name) for name in ("one", "other")]
    for together, single in zip(both["models"], alone, strict=True):
        assert together["top1"] == single["top1"]
        assert together["confusion"] == single["confusion"]
    (compared,) = both["comparisons"]
    answers = [said_by_predict(desk / name, photos_of(desk / "val")) for name in ("one", "other")]
    one, other = (p.argmax(1) == t for p, t in answers)
    assert (compared["model_a"], compared["model_b"]) == (str(desk / "one"), str(desk / "other"))
    assert compared["top1"] == pytest.approx(one.mean() - other.mean(), abs=1e-12)
    assert compared["only_a_correct"] == (one & ~other).sum()
    assert compared["only_b_correct"] == (other & ~one).sum()
    assert compared["top1_interval"][0] <= compared["top1"] <= compared["top1_interval"][1]


def test_photos_that_cannot_be_read_are_named_and_in_no_figure(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(desk / "val", tmp_path / "val")
    good = record(capsys, tmp_path / "val", "--model", desk / "one")
    (tmp_path / "val" / "n01" / "00a.jpg").write_bytes(b"")
    (tmp_path / "val" / "n02" / "99.jpg").write_text("no picture\n" * 99)
    both = ["--model", str(desk / "one"), "--model", str(desk / "other")]
    assert validate(tmp_path / "val", *both, "-q", "--format", "json") == 1
    assert json.loads(capsys.readouterr().out)["models"][0]["count"] == 30
    assert validate(tmp_path / "val", *both[:2], "--format", "json") == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [(Path(u["path"]).name, u["code"]) for u in found["unreadable"]] == [
        ("00a.jpg", "empty_file"),
        ("99.jpg", "not_an_image"),
    ]
    assert "00a.jpg" in err
    assert "32 photos: 2 could not be read and are left out" in err
    for key in ("count", "top1", "top5", "confusion", "classes"):
        assert found[key] == good[key]


def test_not_one_photo_can_be_read(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.jpg").write_bytes(b"")
    assert validate(tmp_path, "--model", desk / "one") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "none of the 1 photos" in err


def test_classes_are_matched_by_name(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate(desk / "val", "--model", desk / "one") == 0
    assert "2 of 7 classes have no photos (n06, n07)" in capsys.readouterr().err
    for c in IDS[:5]:  # folders of the readable names
        shutil.copytree(desk / "val" / c, tmp_path / "val" / LABELS[c])
    ids, labels = (dla.validate(f / "val", str(desk / "one")) for f in (desk, tmp_path))
    assert ids.evaluation.to_dict() == labels.evaluation.to_dict()
    shutil.copytree(desk / "val" / "n01", tmp_path / "val" / "thing 11")
    assert validate(tmp_path / "val", "--model", desk / "one") == 2
    assert 'the class "thing 1" (and 5 more) is none of the 7 known ones' in capsys.readouterr().err
    (tmp_path / "unknown" / "n011").mkdir(parents=True)
    shutil.copy(photos_of(desk / "val")[0], tmp_path / "unknown" / "n011" / "a.jpg")
    shutil.copytree(desk / "val" / "n02", tmp_path / "unknown" / "n02")
    assert validate(tmp_path / "unknown", "--model", desk / "one") == 2
    assert 'the class "n011" is none of the 7 known ones. Nearest: n01' in capsys.readouterr().err


def test_a_table_of_encoded_photos_gives_the_same(desk: Path, tmp_path: Path) -> None:
    photos = photos_of(desk / "val")
    columns = {"bytes": [p.read_bytes() for p in photos], "kind": [p.parent.name for p in photos]}
    pq.write_table(pa.table(columns), tmp_path / "val.parquet")
    named = DataOptions(image_column="bytes", label_column="kind")
    found = dla.validate(tmp_path / "val.parquet", str(desk / "one"), columns=named)
    assert found.evaluation.to_dict() == dla.validate(desk / "val", str(desk / "one")).evaluation.to_dict()
    words = ["--image-column", "bytes", "--label-column", "kind", "-q", "-o", tmp_path / "f.json"]
    assert validate(tmp_path, "--model", desk / "one", *words) == 0
    assert json.loads((tmp_path / "f.json").read_text())["top1"] == found.top1


def test_a_temperature_is_fitted_saved_and_used(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = shutil.copytree(desk / "one", tmp_path / "one")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "somebody's": [1]}))
    weights = (model / "model.safetensors").read_bytes()
    photos = photos_of(desk / "val")
    before, targets = said_by_predict(model, photos)
    found = dla.validate(desk / "val", str(model), calibrate=True)
    assert found.calibrated is not None
    t = found.calibrated.temperature
    assert t != 1
    config["dla"]["temperature"] = t
    assert json.loads((model / "config.json").read_text()) == {**config, "somebody's": [1]}
    assert (model / "model.safetensors").read_bytes() == weights
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors"]

    after, _ = said_by_predict(model, photos)
    np.testing.assert_allclose(after, scipy.special.softmax(np.log(before) / t, axis=1), atol=1e-5)
    loss = metrics.log_loss(targets, after, labels=np.arange(len(IDS)))
    assert loss < metrics.log_loss(targets, before, labels=np.arange(len(IDS)))
    assert found.calibrated.log_loss == pytest.approx(loss, abs=1e-5)
    again = dla.validate(desk / "val", str(model), calibrate=True)
    assert again.temperature == t
    assert again.calibrated is not None
    assert again.calibrated.temperature == pytest.approx(t, rel=1e-3)
    assert again.evaluation.log_loss == pytest.approx(loss, abs=1e-5)
    assert again.top1 == found.top1

    assert main(["info", str(model)]) == 0
    assert f"temperature    {t:g}: divides the scores" in capsys.readouterr().out
    assert dla.info(str(model)).to_dict()["temperature"] == pytest.approx(t)
    assert dla.info(str(desk / "one")).temperature is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "shipped:tiny200 is not a model folder of yours"),
        (["--model", "one/model.safetensors"], "is a file without a config"),
        (["--model", "one", "--model", "other"], "one model at a time, but 2 are given"),
        (["--model", "one", "--tta", "flips"], "Leave out tta and preset"),
        (["--model", "one", "--preset", "imagenet"], "Leave out tta and preset"),
    ],
)
def test_a_temperature_that_cannot_be_saved_is_refused(
    desk: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    before = (desk / "one" / "config.json").read_bytes()
    assert validate("val", *words, "--calibrate") == 2
    assert said in capsys.readouterr().err
    assert (desk / "one" / "config.json").read_bytes() == before


def test_the_way_out_is_one(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert validate(desk / "val", "--calibrate") == 2
    command = capsys.readouterr().err.strip().partition("of it: dla ")[2]
    assert main(command.split()) == 0
    assert (tmp_path / "mine" / "config.json").is_file()


@pytest.mark.parametrize("value", [0, -1, "2", True, [1], 1e9])
def test_a_folder_with_another_temperature_is_damaged(desk: Path, tmp_path: Path, value: object) -> None:
    model = shutil.copytree(desk / "one", tmp_path / "one")
    config = json.loads((model / "config.json").read_text())
    config["dla"]["temperature"] = value
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(dla.DamagedError, match=r"dla\.temperature is .*Allowed: a number from 0\.01 to 100"):
        dla.load(str(model))


def test_the_imagenet_preset_leaves_photos_as_stored(desk: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in photos_of(desk / "val"):
        to = tmp_path / "val" / path.parent.name / path.name
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(to, exif=exif, quality=95)
    classifier = dla.load(str(desk / "one"))
    stored = replace(classifier, preprocessing=replace(classifier.preprocessing, exif="ignore"))
    turned, as_stored = (dla.validate(tmp_path / "val", classifier, preset=p) for p in ("model", "imagenet"))
    assert as_stored.evaluation.to_dict() == dla.validate(tmp_path / "val", stored).evaluation.to_dict()
    assert as_stored.evaluation.log_loss != turned.evaluation.log_loss
    assert as_stored.to_dict()["preset"] == "imagenet"


@pytest.mark.parametrize(
    ("side", "sides"), [(32, [32, 64]), (64, [32, 64, 96]), (96, [64, 96, 128]), (224, [160, 224, 288]), (20, [32, 20])]
)
def test_scales_suit_the_network(side: int, sides: list[int]) -> None:
    sizes = [p.size for p in tta_views(dla.Preprocessing((side, side)), "scales")]
    assert sizes == [(s, s) for s in sides]


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flips", 2), ("scales", 2), ("both", 4)])
def test_views_are_averaged(desk: Path, tta: str, count: int) -> None:
    classifier = dla.load(str(desk / "one"))
    found = dla.validate(desk / "val", classifier, tta=tta, batch_size=8)
    sides = (32, 64) if tta in ("scales", "both") else (32,)
    photos = [Image.open(path) for path in photos_of(desk / "val")[:8]]
    seen = [replace(classifier.preprocessing, size=(side, side)) for side in sides]
    views = [np.stack([size.pixels(photo) for photo in photos]) for size in seen]
    if tta in ("flips", "both"):
        views += [view[:, :, ::-1].copy() for view in views]
    assert len(views) == count
    mean_8K = np.mean([classifier.engine.probabilities(view) for view in views], 0)
    np.testing.assert_array_equal(found.evaluation.sample_results.predicted_N[:8], mean_8K.argmax(1))
    np.testing.assert_allclose(found.evaluation.sample_results.confidence_N[:8], mean_8K.max(1), atol=1e-6)


def test_two_processes_have_the_figures_of_one(desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(desk / "val", tmp_path / "val")
    (tmp_path / "val" / "n03" / "broken.jpg").write_bytes(b"")
    words = ["validate", str(tmp_path / "val"), "--model", str(desk / "one"), "--model", str(desk / "other")]
    alone = record(capsys, *words[1:], code=1)
    together = two_ranks(
        "-m", "dla", *words, "--threads", "1", "-o", tmp_path / "two.json", "--report", tmp_path / "two.html"
    )
    assert [done.returncode for done in together] == [1, 1], together
    assert sum(done.stderr.count("broken.jpg: ") for done in together) == 1
    found = json.loads((tmp_path / "two.json").read_text())
    assert found["unreadable"] == alone["unreadable"]
    for ours, theirs in zip(found["models"], alone["models"], strict=True):
        assert ours["confusion"] == theirs["confusion"]
        for key in ("top1", "top5", "log_loss", "balanced_accuracy", "macro_f1"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6)
        assert ours["calibration"]["error"] == pytest.approx(theirs["calibration"]["error"], abs=1e-6)
    assert found["comparisons"] == alone["comparisons"]
    assert (tmp_path / "two.html").stat().st_size > 10_000


def test_a_report_tells_all_models(desk: Path, tmp_path: Path) -> None:
    models = [str(desk / name) for name in ("one", "other")]
    write_report(tmp_path / "r.html", dla.validate(desk / "val", models))
    text = (tmp_path / "r.html").read_text()
    assert ">Comparison<" in text
    for name in models:
        assert f"Results of {name}" in text
    assert text.count("Most confident errors") == 2


def test_a_result_is_not_lost_to_its_report(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_page(path: str, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr("dla.evaluation.html.write_page", write_page)
    words = [desk / "val", "--model", desk / "one", "-q", "-o", tmp_path / "r.json", "--report", tmp_path / "r.html"]
    assert validate(*words) == 1
    assert "No space left" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["count"] == 30


def test_an_output_is_written_whole_or_stays(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "there.json").write_text("before")
    (tmp_path / "link.json").symlink_to("there.json")
    words = [desk / "val", "--model", desk / "one", "-q", "-o"]
    with monkeypatch.context() as context:
        context.setattr("dla.weights.model_folder.os.fsync", full)
        assert validate(*words, tmp_path / "there.json") == 1
    assert f"{tmp_path / 'there.json'}: No space left" in capsys.readouterr().err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link.json", "there.json"]
    assert (tmp_path / "there.json").read_text() == "before"
    assert validate(*words, tmp_path / "link.json") == 0
    assert json.loads((tmp_path / "there.json").read_text())["count"] == 30
    assert (tmp_path / "link.json").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        assert validate(*words, tmp_path / "pipe") == 0
        assert b"30 photos" in reader.communicate(timeout=60)[0]


def test_the_table_is_for_people(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [desk / "val", "-q", "--model", desk / "one"]
    found = dla.validate(desk / "val", str(desk / "one"))
    assert validate(*words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{desk / 'val'}: 30 photos, 5 of the model's 7 classes\n")
    assert re.search(rf"top-1 +{100 * found.top1:.1f} %   95 % interval ", out)
    assert "commonest errors" in out
    assert validate(*words, "--model", desk / "other") == 0
    out = capsys.readouterr().out
    assert f"{desk / 'one'} minus {desk / 'other'}" in out
    assert "points, 95 % interval" in out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nowhere"], 3, "nowhere does not exist"),
        (["val", "--model", "dla61"], 2, "dla60"),
        (["val", "--model", "one", "--batch-size", "0"], 2, "--batch-size is 0"),
        (["val", "--model", "one", "--output", "val"], 2, "val is a folder"),
        (["val", "--model", "one", "--report", "gone/r.html"], 2, "there is no folder gone"),
        (["val", "--model", "one", "--output", "r", "--report", "./r"], 2, "--output and --report are both r"),
        (["val", "--model", "one", "--tta", "flip"], 2, "flips"),
        ([], 2, "DATA is missing"),
    ],
)
def test_wrong_usage_is_one_sentence(
    desk: Path, words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(desk)
    assert validate(*words) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "Traceback" not in err
