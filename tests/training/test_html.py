"""The report of a run, from what lies in its folder."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.data.dataset import Split
from dla.training.html import write_report
from support.photos import crops, jpeg


def evil_split(folder: Path) -> tuple[Split, np.ndarray]:
    """24 photos of three classes with markup in their names, eight of them taken for the next class."""
    photos = []
    for i, photo in enumerate(crops(24)):
        path = folder / f"<i>{i:02d}&.jpg"
        path.write_bytes(jpeg(photo))
        photos.append(str(path))
    targets = np.arange(24) % 3
    answers = np.where(np.arange(24) < 8, (targets + 1) % 3, targets)
    return Split(photos, targets, ("<b>", "b", "c"), photos), np.eye(3, dtype=np.float32)[answers] * 4


def test_it_shows_what_lies_in_the_run_s_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    split, logits = evil_split(tmp_path)
    epochs = [
        {"epoch": e, "step": 10 * e, "loss": 2.0 / e, "lr": 0.1 / e, "top1": 0.2 * e, "top5": 1.0, "seconds": 30.0,
         "val_loss": None if e == 2 else 2.5 / e, "photos_per_second": 100.0, "data_wait": 0.02}
        for e in (1, 2, 3)
    ]  # fmt: skip
    torn = '{"epoch": 4, "st'
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs) + torn)
    facts = {"command": ["dla", "train", "my photos/<u>"], "versions": {"torch": "2.13.0"}, "data": {"train": 1200},
             "best": {"epoch": 3}}  # fmt: skip
    (run / "run.json").write_text(json.dumps(facts))
    (run / "config.yaml").write_text("model: <s>dla34\n")
    Image.new("RGB", (400, 200), "red").save(run / "mosaic.png")
    text = write_report(run, split, logits, ["<b>", "b", "c"]).read_text(encoding="utf-8")
    assert "66.7\u00a0%" in text
    assert "1.5\u00a0min" in text
    assert "3 epochs, 100\u00a0photos/s" in text
    assert '<p class="sentence">16 of 24 photos are classified correctly.' in text
    for title in ("Loss", "Validation accuracy", "Learning rate", "Speed", "Waiting for photos"):
        assert f"<h3>{title}</h3>" in text
    assert text.count("</polyline>") == 8
    assert "top-5" not in text  # of three classes every one is among the first five
    assert "dla train &#39;my photos/&lt;u&gt;&#39;" in text
    assert "model: &lt;s&gt;dla34" in text
    assert "data: train</dt><dd>1,200" in text
    assert "Training photos as the network sees them" in text
    assert "Of 8 errors" in text
    assert "best: epoch 3, 60.0\u00a0%" in text.replace("60.0 %", "60.0\u00a0%")
    assert f"dla predict new/ --model {run / 'best'}\ndla export {run / 'best'} -o exported/ --to onnx" in text
    assert "needs pip install &#39;.[export]&#39;" in text
    curves, folded = text.partition("<summary>Learning rate, speed and waiting for photos</summary>")[::2]
    assert curves.count("</polyline>") == 5  # three curves and the best epoch in both charts
    assert folded.partition("</details>")[0].count("</polyline>") == 3
    for markup in ("<b>", "<i>0", "<u>", "<s>"):
        assert markup not in text


def test_what_is_not_there_yet_is_left_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    split, logits = evil_split(tmp_path)
    text = write_report(run, split, logits, ["a", "b", "c"]).read_text(encoding="utf-8")
    assert ">Results<" in text
    for title in ("Progress", "How to reproduce it", "Training photos as the network sees them"):
        assert title not in text


def test_the_best_epoch_is_marked_with_the_figure_of_the_top(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    split, logits = evil_split(tmp_path)
    figures = [(0.5, 1.0, 0.9), (16 / 24, 0.8, 0.7), (0.6, 0.9, 0.5)]  # top-1, validation loss, training loss
    epochs = [
        {"epoch": e, "top1": top1, "top5": 1.0, "val_loss": val, "loss": loss, "seconds": 1.0, "photos_per_second": 9.0}
        for e, (top1, val, loss) in enumerate(figures, 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    (run / "run.json").write_text(json.dumps({"best": {"epoch": 2}, "command": ["/usr/bin/dla", "train", "flowers"]}))
    model = {"dla": {"dataset": "my <flowers>", "license": "CC0", "starts_from": "shipped:tiny200"}}
    (run / "best" / "config.json").write_text(json.dumps(model))
    text = write_report(run, split, logits, ["a", "b", "c"]).read_text(encoding="utf-8").replace("\u00a0", " ")
    assert '<div class="value">66.7 %</div>' in text
    assert "best: epoch 2, 66.7 %" in text
    assert "with the weights of epoch 2 of 3, which are in best/" in text
    (dots,) = re.findall(r"<h3>Validation accuracy</h3>.*?(<circle [^>]*/>)", text, re.DOTALL)
    (mark,) = re.findall(r'<h3>Validation accuracy</h3>.*?points="([\d.]+),[\d.]+ \1,[\d.]+"', text, re.DOTALL)
    assert f'cx="{mark}"' in dots
    assert "validation loss was lowest in epoch 2 (0.800) and rose to 0.900 in epoch 3" in text
    for name, value in (("data set", "my &lt;flowers&gt;"), ("licence", "CC0"), ("network", "shipped:tiny200")):
        assert f"<dt>{name}</dt><dd>{value}</dd>" in text
    today = datetime.date.today()
    assert f"<dt>date</dt><dd>{today.day} {today:%B %Y}</dd>" in text
    assert "<pre>dla train flowers</pre>" in text
    assert "top-1 fell" not in text  # by 7 of 100
    fallen = [e | {"val_loss": 0.8, "top1": 0.5 if e["epoch"] == 3 else e["top1"]} for e in epochs]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in fallen))
    assert "top-1 fell from 66.7 % in epoch 2 to 50.0 % in epoch 3; best/ keeps the weights of epoch 2" in (
        write_report(run, split, logits, ["a", "b", "c"]).read_text(encoding="utf-8").replace("\u00a0", " ")
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(e | {"val_loss": 0.8}) + "\n" for e in epochs))
    assert "overfitting" not in write_report(run, split, logits, ["a", "b", "c"]).read_text(encoding="utf-8")


def test_top_5_is_drawn_where_it_says_something(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    epochs = [{"epoch": e, "top1": 0.2 * e, "top5": 0.3 * e, "seconds": 1.0, "photos_per_second": 9.0} for e in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in epochs))
    split, logits = evil_split(tmp_path)
    six = Split(split.photos, split.targets_N, tuple("abcdef"), split.names)
    text = write_report(run, six, np.pad(logits, ((0, 0), (0, 3))), list("abcdef")).read_text(encoding="utf-8")
    assert text.count("</polyline>") == 3
    assert ">top-5<" in text


def test_a_photo_that_is_gone_leaves_its_place(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    split, logits = evil_split(tmp_path)
    whole = write_report(run, split, logits, ["a", "b", "c"]).read_text().count("<img")
    Path(str(split.photos[3])).unlink()
    assert write_report(run, split, logits, ["a", "b", "c"]).read_text().count("<img") == whole - 1


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    split, logits = evil_split(tmp_path)
    before = write_report(run, split, logits, ["a", "b", "c"]).read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_report(run, split, logits, ["a", "c", "b"])
    assert caught.value.filename == str(run / "report.html")
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob("*.part*"))
