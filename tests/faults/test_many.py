"""`dla train` on two processes: one is killed and the end is the same; then one goes on alone."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dla.images.preprocessing import Preprocessing
from dla.training.batches import TrainBatches
from dla.training.classify_task import ClassifySamples
from dla.training.distributed import Ranks
from dla.training.recipe import Recipe
from dla.training.recipe_files import recipe_from
from dla.training.run import train
from dla.training.task import Batch
from support.flat_photos import PLAIN
from support.progress import Recorder
from support.torchrun import elastic, two_ranks

pytestmark = pytest.mark.slow

KILLING = Path(__file__).with_name("killing_rank.py")
SETTINGS = {
    "model": "dla46x_c", "epochs": 2, "batch_size": 8, "lr": 0.01, "input.sizes": {0: 32}, "input.val_size": 32,
    "average.decay": 0.9, "optimizer.accumulate": 2, "augment.mixup": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 to train with and 7 to measure, so that two ranks have different numbers of them."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, counts in (("train", (14, 10)), ("val", (4, 3))):
        for name, count in zip(("blue", "red"), counts, strict=True):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 255, (34, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def words(photos: Path, run: Path, *more: str) -> list[str]:
    flags = [w for key, value in SETTINGS.items() for w in (f"--{key.replace('batch_', 'batch-')}", str(value))]
    return ["-m", "dla", "train", str(photos), "--recipe", PLAIN, *flags, "--output", str(run), *more]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that nothing interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    both = two_ranks(*words(photos, run))
    assert [done.returncode for done in both] == [0, 0], both
    assert [done.stderr.count("epoch 1/2  loss") for done in both] == [1, 0]  # only the main rank prints
    return run


def test_a_killed_process_is_started_again_and_the_end_is_the_same(photos: Path, whole: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "killed", tmp_path / "log.txt"
    command = [KILLING, *words(photos, run, "--save-every", "0")[2:]]
    with elastic(*command, log=log, restarts=1) as process:
        process.join()
    assert process.exitcode == 0, log.read_text()
    assert "continues at epoch " in log.read_text()
    for name in ("model.safetensors", "config.json"):
        assert (run / "best" / name).read_bytes() == (whole / "best" / name).read_bytes()
    assert weights(run) == weights(whole)
    assert figures(run) == figures(whole)


def weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").iterdir())[-1] / "state.safetensors").read_bytes()


def figures(run: Path) -> list[list[float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [[line[k] for k in ("loss", "top1", "val_loss")] for line in lines]


def test_a_schedulers_sigterm_makes_all_ranks_save_and_end(photos: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "preempted", tmp_path / "log.txt"
    with elastic(*words(photos, run), "--epochs", "1000", log=log) as process:
        while not (run / "metrics.jsonl").exists():
            assert process.is_alive(), log.read_text()
            time.sleep(0.01)
        process.terminate()
        process.join()
    text = log.read_text()
    (saved,) = [line for line in text.splitlines() if line.startswith("Saved at step ")]
    newest = sorted((run / "checkpoints").iterdir())[-1]
    assert saved == f"Saved at step {newest.name.split('-')[-1]}. Run the same command again to continue."
    assert text.count("Traceback") == 1  # the agent's own


def test_one_process_goes_on_alone_and_says_so(photos: Path, whole: Path, tmp_path: Path) -> None:
    run, progress = tmp_path / "alone", Recorder()
    shutil.copytree(whole, run)
    facts = json.loads((run / "run.json").read_text())
    assert facts["machine"]["processes"] == 2
    (run / "run.json").write_text(json.dumps(facts | {"finished": False}))
    shutil.rmtree(sorted((run / "checkpoints").iterdir())[-1])
    recipe = recipe_from(None, SETTINGS)
    train(photos, recipe, output=run, workers=0, device="cpu", progress=progress)
    assert any(
        "processes were 2, now 1" in text and "the results may differ in the last bits" in text
        for text in progress.said
    )
    assert any(text == "continues at epoch 2, step 0" for text in progress.said)
    assert json.loads((run / "run.json").read_text())["finished"]
    assert len(figures(run)) == 2
    # the second epoch saw other batch norms, but the first one was over and stands as it was
    assert figures(run)[0] == figures(whole)[0]


class Noise:
    """A photo of its own for each row."""

    def __getitem__(self, row: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(row).integers(0, 255, (30, 40, 3), np.uint8))


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("sampling", ["natural", "balanced"])
def test_ranks_share_each_batch_photo_by_photo(world: int, sampling: str) -> None:
    """Whatever the number of ranks, a step has the same crops of the same photos."""
    recipe = recipe_from(None, {"batch_size": 12, "seed": 3, "input.sizes": {0: 16}, "loss.sampling": sampling})
    targets_N = np.arange(50) % 7 // 3

    def epoch(ranks: Ranks) -> list[Batch]:
        return list(TrainBatches(ClassifySamples(Noise(), targets_N, recipe, SQUARE), recipe, 0, ranks).epoch(1, 1))

    alone = epoch(Ranks())
    shares = [epoch(Ranks(rank, world)) for rank in range(world)]
    assert len(alone) == 3
    for step, batch in enumerate(alone):
        for rank in range(world):
            share = shares[rank][step]
            assert share.rows_N.tolist() == batch.rows_N[rank::world].tolist()
            assert share.targets_N.tolist() == batch.targets_N[rank::world].tolist()
            assert np.array_equal(share.pixels_NHW3, batch.pixels_NHW3[rank::world])


SQUARE = Preprocessing((16, 16), 1.0, "center", "bilinear", (0.5,) * 3, (0.5,) * 3)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    recipe = Recipe(batch_size=10)
    with pytest.raises(Exception, match="batch_size is 10; 4 processes .* need a multiple of 4"):
        TrainBatches(ClassifySamples(Noise(), np.zeros(50, np.int64), recipe, SQUARE), recipe, 0, Ranks(0, 4))
