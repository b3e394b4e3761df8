"""`dla train` on the command line: names, what is printed, plans, and what is refused before a folder is made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

import dla
from dla.cli import main
from dla.cli.progress import clock
from dla.cli.train import RunFigures, summary
from dla.training.events import EpochEvent, StepEvent
from support import flat_photos
from support.progress import Recorder
from support.tiny import in_the_table

pytestmark = pytest.mark.slow

SMALL = ["--recipe", flat_photos.PLAIN, "--model", "tiny", "--batch-size", "8", "--epochs", "1",
             "--input.val-size", "32", "--workers", "0"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _tiny() -> Iterator[None]:
    with in_the_table():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flat_photos.write(tmp_path_factory.mktemp("data"))


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["train", *words, "--print-config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_flags_go_before_a_recipe_and_dashes_are_underscores(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["flowers", "--recipe", "probe", "--epochs", "3", "--optimizer.weight-decay=0.5", "--data.val-share", "0.3"]
    found = printed(words, capsys)
    assert (found["photos"], found["epochs"], found["freeze"]) == ("flowers", 3, "level5")
    assert (found["optimizer"]["weight_decay"], found["optimizer"]["name"]) == (0.5, "adamw")
    assert found["data"]["val_share"] == 0.3


def test_a_recipe_behind_a_flag_does_not_undo_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = printed(["flowers", "--recipe", "finetune", "--lr", "0.5"], capsys)
    assert ahead["lr"] == 0.5
    for words in (["--lr", "0.5", "--recipe", "finetune"], ["--lr", "0.5", "--recipe=finetune"]):
        assert printed(["flowers", *words], capsys) == ahead
    monkeypatch.setenv("DLA_RECIPE", "finetune")
    assert printed(["flowers", "--lr", "0.5"], capsys) == ahead
    assert main(["train", "flowers", "--recipe"]) == 2
    assert "--recipe" in capsys.readouterr().err


def test_what_is_printed_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(["flowers", "--recipe", "tiny-imagenet"], capsys)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(found))
    assert printed(["--recipe", str(tmp_path / "mine.yaml")], capsys) == found
    assert printed([f"--recipe={tmp_path / 'mine.yaml'}", "--lr", "3"], capsys) == found | {"lr": 3.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "finetun"], 'no recipe is called "finetun". Nearest: finetune'),
        (["--epoch", "3"], 'no option is called "--epoch". Nearest: --epochs'),
        (["--optimizer.momentun", "3"], 'no option is called "--optimizer.momentun". Nearest: --optimizer.momentum'),
        (["--epochs", "0"], "epochs is 0: it must be at least 1"),
        (["--augment.flip", "2"], "augment.flip is 2.0. Allowed: 0 to 1"),
        ([], "no photos are given"),
    ],
)
def test_slips_are_told_and_leave_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_in_a_file_is_told_with_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("optimizer: {weight_decy: 3}\n")
    assert main(["train", "flowers", "--recipe", str(tmp_path / "mine.yaml")]) == 2
    assert 'called "optimizer.weight_decy". Nearest: optimizer.weight_decay' in capsys.readouterr().err


def test_a_wrong_network_leaves_the_folder_free(data: Path, tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "run")]
    assert main(["train", str(data), *SMALL, "--model", "dla35_half", *output]) == 2
    assert main(["train", "nowhere/at/all", *SMALL, *output]) == 3
    assert main(["train", str(data), *SMALL, *output, "-q"]) == 0


def test_a_run_again_by_its_own_config_is_the_same(data: Path, tmp_path: Path) -> None:
    one, again = tmp_path / "one", tmp_path / "again"
    assert main(["train", str(data), *SMALL, "--output", str(one), "-q"]) == 0
    assert main(["train", "--recipe", str(one / "config.yaml"), "--output", str(again), "--workers", "2", "-q"]) == 0
    weights = [(folder / "best" / "model.safetensors").read_bytes() for folder in (one, again)]
    assert weights[0] == weights[1]
    facts = json.loads((again / "run.json").read_text())
    assert facts["finished"]
    assert facts["data"]["train"] == 40
    with Image.open(one / "mosaic.png") as mosaic:
        assert mosaic.size == (3 * 38 - 6, 3 * 52 - 6)  # gaps of 6, and 14 for the labels


def test_the_default_folder_is_called_by_recipe_and_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(data), *SMALL[2:], "--pretrained", "false"]) == 0
    folder = Path("runs") / f"finetune-small-{data.name}"
    assert (folder / "report.html").exists()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("best ")
    assert f"Model: {folder}/best" in last


def test_a_plan_is_printed_and_nothing_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["--input.sizes", "{0: 16, 2: [16, 24]}", "--epochs", "3"]
    assert main(["train", str(data), *SMALL, *sizes, "--dry-run"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["data"] == "40 train, 10 val, 2 classes"
    assert lines["steps"] == "5 per epoch, 15 in 3 epochs"
    assert "16 px" in lines["per"]
    assert "24 px" in lines["per"]
    assert lines["time"].startswith("about 0:")
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_is_proposed_and_drawn(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(data), *SMALL, "--input.sizes", "{0: 16}", "--find-lr", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    flag, rate = capsys.readouterr().out.split()
    assert flag == "--lr"
    assert 1e-6 < float(rate) < 1
    with Image.open(tmp_path / "run" / "lr.png") as curve:
        assert curve.width > 500
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["lr.png"]


def test_help_begins_with_the_short_flags() -> None:
    done = subprocess.run([sys.executable, "-m", "dla", "train", "--help"], capture_output=True, text=True, check=True)
    first = done.stdout.split("recipe:\n")[0]
    for flag in (
        "--recipe",
        "--model",
        "--epochs",
        "--batch-size",
        "--lr",
        "--seed",
        "--output",
        "--workers",
        "--device",
    ):
        assert f"{flag} " in first
    assert "--optimizer.momentum X" in done.stdout.split("recipe:\n")[1]
    assert "(default: 0.9)" in done.stdout


def test_a_line_says_what_an_epoch_came_to() -> None:
    epoch = EpochEvent(3, 111, 0.6123, 0.01, {"top1": 0.833, "top5": 0.99, "val_loss": 0.5}, 7.6, 212.4, 0.01)
    val = "epoch 3/12  loss 0.612  val 83.3 % (top-5 99.0 %)"
    assert summary(epoch, 12, True, "4:10 left") == f"{val}, the best so far  212 photos/s  4:10 left"
    assert summary(epoch, 12, False, "") == f"{val}  212 photos/s"
    assert summary(replace(epoch, photos_per_second=0.42), 12, False, "") == f"{val}  0.4 photos/s"
    assert "top-5" not in summary(replace(epoch, figures=epoch.figures | {"top5": 1.0}), 12, False, "")
    dense = replace(epoch, figures={"miou": 0.512, "pixel_accuracy": 0.9})
    assert "val mIoU 51.2 % (pixel accuracy 90.0 %)" in summary(dense, 12, False, "")
    assert (clock(59.6), clock(3723)) == ("1:00", "1:02:03")


def test_the_time_left_is_that_of_whole_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation at the rate so far, as the progress bar has it, for each epoch that is left."""
    now, progress = [100.0], Recorder()
    monkeypatch.setattr("dla.cli.train.time", SimpleNamespace(monotonic=lambda: now[-1]))
    figures = RunFigures(progress, 12)
    epoch = EpochEvent(3, 120, 0.6, 0.01, {"top1": 0.8, "top5": 1.0, "val_loss": 0.5}, 8.0, 40.0, 0.01)
    figures.on_epoch(epoch, False)  # a run that continues behind the last step
    for step in range(40):
        figures.on_step(StepEvent(3, 12, step + 1, 40, 0.6, 0.5, 0.01, 8))
    now.append(102.0)
    figures.on_epoch(epoch, False)
    for step in range(40):
        figures.on_step(StepEvent(4, 12, step + 1, 40, 0.6, 0.5, 0.01, 8))
    now.append(132.0)
    figures.on_epoch(replace(epoch, epoch=4), False)
    figures.on_epoch(replace(epoch, epoch=12), False)
    assert ["left" in line for line in progress.said] == [False, True, True, False]
    assert progress.said[2].endswith("2:40 left")  # 8 epochs of (10 + 30) / 2 s
    assert progress.said[1].endswith("40 photos/s  1:30 left")  # 9 epochs of 320 / 40 + 2 s


def test_from_python_with_the_same_arguments(data: Path, tmp_path: Path) -> None:
    settings = {"model": "tiny", "epochs": 1, "batch_size": 8, "input.sizes": {0: 32}, "input.val_size": 32}
    folder = dla.train(data, "finetune-small", output=tmp_path / "run", workers=0,
                       settings=settings | {"pretrained": False})  # fmt: skip
    assert dla.load(str(folder / "best")).predict(data / "val" / "red" / "0.png").classes[0].class_id in ("red", "blue")


def test_without_a_recipe_it_is_the_default_one(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed([str(data)], capsys)
    assert found == printed([str(data), "--recipe", "finetune-small"], capsys)
    assert (found["model"], found["pretrained"], found["batch_size"]) == ("shipped:tiny200", True, 32)


def test_the_recipes_batch_is_lowered_and_one_that_is_given_refused_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class LoadedError(Exception):
        pass

    def load(*_: object) -> None:
        raise LoadedError

    monkeypatch.setattr("dla.training.classify_task.build_initial", load)
    monkeypatch.chdir(tmp_path)
    data = flat_photos.write(tmp_path / "few", train=9, val=2)
    with pytest.raises(LoadedError):
        main(["train", str(data)])
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "recipe  finetune-small"
    assert said[-1] == "batch   9 photos per step instead of 32: there are only 18 photos to train with"
    for words in ([], ["--dry-run"], ["--find-lr"]):
        assert main(["train", str(data), "--batch-size", "32", "-q", *words]) == 2
        assert capsys.readouterr().err == (
            "dla: batch_size is 32, but there are only 18 photos to train with. Try: --batch-size 9\n"
        )
    monkeypatch.setenv("DLA_BATCH_SIZE", "32")
    assert main(["train", str(data), "-q"]) == 2
    assert not list(tmp_path.glob("runs/*"))


def test_a_run_with_a_lowered_batch_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = flat_photos.write(tmp_path / "few", train=4, val=2), tmp_path / "run"
    words = ["train", str(data), *SMALL[:4], *SMALL[6:], "--output", str(run)]
    assert main([*words, "--dry-run"]) == 0
    assert ", 4 photos each" in capsys.readouterr().out
    assert main(words) == 0
    assert json.loads((run / "run.json").read_text())["batch_size"] == 4
    assert json.loads((run / "best" / "config.json").read_text())["dla"]["recipe"]["batch_size"] == 4
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [2]
    assert main(words) == 0
    assert "is finished" in capsys.readouterr().err
    again = tmp_path / "again"
    assert main(["train", "--recipe", str(run / "config.yaml"), "--output", str(again), "--workers", "0", "-q"]) == 0
    weights = [(folder / "best" / "model.safetensors").read_bytes() for folder in (run, again)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("flag", ["--dry-run", "--find-lr"])
def test_what_looks_at_one_process_is_refused_under_torchrun(
    flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["train", "photos", flag]) == 2
    assert capsys.readouterr().err == f"dla: {flag} works in a single process. Run it without torchrun\n"
