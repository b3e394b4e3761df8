"""What decides the bits of a run: its seed, and the versions and machine that are recorded with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dla
from dla.data.dataset import Split, Splits
from dla.training.distributed import Ranks
from dla.training.recipe_files import recipe_from
from dla.training.run_folder import environment, environment_difference
from dla.training.setup import set_up
from dla.training.task import Runtime

SETTINGS = {
    "model": "dla46x_c", "batch_size": 4, "lr": 0.01, "input.sizes": {0: 32}, "augment.mixup": 0.5,
    "augment.brightness": 0.3, "regular.drop_path_rate": 0.2,
}  # fmt: skip


def after_two_steps(folder: Path, **settings: object) -> dict[str, torch.Tensor]:
    photos = sorted(map(str, folder.iterdir()))
    split = Split(photos, np.arange(len(photos)) % 2, ("a", "b"), photos)
    recipe = recipe_from(None, SETTINGS | settings)
    setup = set_up(recipe, Splits(split, split, ""), Runtime.from_options(0, "cpu", "none"))
    for batch in setup.batches.epoch(0, 0):
        setup.trainer.step(batch, 0.01)
        setup.trainer.position.step += 1
    return setup.trainer.network.state_dict()


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path: Path) -> None:
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    one, same, other = (after_two_steps(tmp_path, seed=seed) for seed in (5, 5, 6))
    assert all(torch.equal(one[name], same[name]) for name in one)
    weights = [name for name, tensor in one.items() if tensor.ndim == 4]
    assert not any(torch.equal(one[name], other[name]) for name in weights)
    with pytest.raises(dla.UsageError, match=r"compute\.sync_batch_norm works only on GPUs.*this run is on cpu"):
        after_two_steps(tmp_path, **{"compute.sync_batch_norm": True})


def test_nothing_is_said_where_nothing_changed() -> None:
    now = environment(torch.device("cpu"), Ranks())
    assert now["versions"]["torch"] == torch.__version__
    assert now["machine"]["threads"] == torch.get_num_threads()
    assert environment_difference(now, now) is None
    assert environment_difference({}, now) is None


def test_other_versions_threads_and_processes_are_said() -> None:
    now = environment(torch.device("cpu"), Ranks())
    before = {
        "versions": now["versions"] | {"torch": "2.12.0"},
        "machine": now["machine"] | {"instructions": "none", "threads": 7, "processes": 2},
    }
    instructions = now["machine"]["instructions"]
    assert environment_difference(before, now) == (
        f"torch was 2.12.0, now {torch.__version__}; instructions were none, now {instructions}; "
        "threads were 7, now 1; processes were 2, now 1: "
        "the results may differ in the last bits from those of an uninterrupted run"
    )
