"""Which photos a step has: each once an epoch, whatever the processes and workers; by class where it is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import dla
from dla.images.preprocessing import Preprocessing
from dla.images.random_crop import crop_generator, random_crop
from dla.training.batches import TrainBatches, fit_batch
from dla.training.classify_task import ClassifySamples, ClassifyValidation
from dla.training.distributed import Ranks
from dla.training.recipe import LossConfig, OptimizerConfig, Recipe
from dla.training.recipe_input import AugmentConfig, InputConfig

RECIPE = Recipe(batch_size=8, input=InputConfig(sizes={0: 16, 1: [8, 12]}), augment=AugmentConfig(scale=(0.5, 1)))
IMAGES = [Image.fromarray(np.full((20, 26, 3), i, np.uint8)) for i in range(43)]
TARGETS = np.array([0] * 30 + [1] * 10 + [2] * 3)
SEEN = Preprocessing((24, 24))


def batches(recipe: Recipe = RECIPE, workers: int = 0, ranks: Ranks | None = None) -> TrainBatches:
    return TrainBatches(ClassifySamples(IMAGES, TARGETS, recipe, SEEN), recipe, workers, ranks or Ranks())


def test_each_photo_comes_at_most_once_an_epoch_with_its_class() -> None:
    rows = []
    for batch in batches().epoch(0, 0):
        assert batch.pixels_NHW3.shape == (8, 16, 16, 3)
        assert (batch.targets_N == TARGETS[batch.rows_N]).all()
        assert (batch.pixels_NHW3 == batch.rows_N[:, None, None, None]).all()
        rows += batch.rows_N.tolist()
    assert len(rows) == len(set(rows)) == 40


def test_epochs_seeds_and_sizes_differ() -> None:
    first, second = ([b.rows_N.tolist() for b in batches().epoch(e, 0)] for e in (0, 1))
    other = [b.rows_N.tolist() for b in batches(replace(RECIPE, seed=1)).epoch(0, 0)]
    assert first != second
    assert first != other
    assert [b.pixels_NHW3.shape[1] for b in batches().epoch(1, 0)] == [8, 12, 8, 12, 8]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_run_goes_on_with_the_same_batches(workers: int) -> None:
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 26, 3), np.uint8)) for i in range(43)]
    samples = ClassifySamples(pictures, TARGETS, RECIPE, SEEN)
    whole, rest = (list(TrainBatches(samples, RECIPE, w, Ranks()).epoch(1, s)) for w, s in ((0, 0), (workers, 3)))
    assert len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert (a.rows_N == b.rows_N).all()
        assert (a.pixels_NHW3 == b.pixels_NHW3).all()


def test_processes_share_the_batch_of_one() -> None:
    alone = list(batches().epoch(0, 0))
    two = [list(batches(ranks=Ranks(r, 2, r)).epoch(0, 0)) for r in (0, 1)]
    for whole, even, odd in zip(alone, *two, strict=True):
        for ours, part in ((even, slice(0, None, 2)), (odd, slice(1, None, 2))):
            assert (ours.rows_N == whole.rows_N[part]).all()
            assert (ours.pixels_NHW3 == whole.pixels_NHW3[part]).all()


def test_the_crop_is_the_one_that_the_photos_place_says() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    recipe = replace(
        RECIPE, batch_size=4, input=InputConfig({0: 32}), augment=AugmentConfig(scale=(0.3, 0.6), flip=1.0)
    )
    batch = next(TrainBatches(ClassifySamples([photo] * 8, TARGETS[:8], recipe, SEEN), recipe, 0, Ranks()).epoch(5, 1))
    for place in range(4):
        box = random_crop(photo.size, (0.3, 0.6), recipe.augment.ratio, crop_generator(0, 5, 1, place))
        wanted = photo.resize((32, 32), Image.Resampling.BILINEAR, box).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        assert (batch.pixels_NHW3[place] == np.asarray(wanted)).all()


def test_balanced_sampling_brings_all_classes_equally_often() -> None:
    recipe = replace(RECIPE, loss=LossConfig(sampling="balanced"))
    seen = np.concatenate([b.targets_N for epoch in range(60) for b in batches(recipe).epoch(epoch, 0)])
    counts = np.bincount(seen)
    assert counts.sum() == 60 * 40
    assert np.abs(counts / counts.sum() - 1 / 3).max() < 4 * (2 / 9 / counts.sum()) ** 0.5


@pytest.mark.parametrize(
    ("recipe", "ranks", "said"),
    [
        (replace(RECIPE, batch_size=44), Ranks(), r"only 43 photos to train with. Try: --batch-size 21"),
        (RECIPE, Ranks(0, 3, 0), r"3 processes with optimizer.accumulate 1 need a multiple of 3"),
        (replace(RECIPE, optimizer=OptimizerConfig(accumulate=8)), Ranks(0, 2, 0), r"need a multiple of 16"),
    ],
)
def test_batches_that_cannot_be(recipe: Recipe, ranks: Ranks, said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        batches(recipe, ranks=ranks)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "photos", "lowered"),
    [(32, 1, 32, 32), (32, 1, 31, 15), (32, 1, 18, 9), (32, 1, 3, 2), (32, 1, 2, 2), (32, 4, 31, 12), (32, 4, 8, 4)],
)
def test_a_recipes_batch_is_lowered_to_half_of_the_photos_where_it_must(
    batch_size: int, accumulate: int, photos: int, lowered: int
) -> None:
    recipe = Recipe(batch_size=batch_size, optimizer=OptimizerConfig(accumulate=accumulate))
    assert fit_batch(recipe, photos, lower=True) == replace(recipe, batch_size=lowered)
    if lowered < batch_size:
        with pytest.raises(dla.UsageError, match=f"there are only {photos} photos to train with"):
            fit_batch(recipe, photos, lower=False)


def test_a_batch_whose_parts_would_be_empty_is_refused() -> None:
    recipe = Recipe(batch_size=32, optimizer=OptimizerConfig(accumulate=16))
    with pytest.raises(dla.UsageError, match="there are only 31 photos to train with"):
        fit_batch(recipe, 31, lower=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_sees_what_predict_sees(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[torch.Tensor] = []

    class Seen(torch.nn.Module):
        def forward(self, x_N3HW: torch.Tensor) -> torch.Tensor:
            parts.append(x_N3HW.clone())
            return x_N3HW[:, :1, 0, 0]

    monkeypatch.setattr("dla.training.classify_task.fuse_conv_bn", lambda network: network)
    seen = replace(SEEN, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    images = [IMAGES[row] for row in (5, 40, 2)]
    pauses: list[int] = []
    val = ClassifyValidation(images, TARGETS[:3], seen, 2, workers, torch.device("cpu"), Ranks())
    found = val.logits(Seen(), lambda: pauses.append(len(parts)))
    assert [len(p) for p in parts] == [2, 1]
    assert pauses == [0, 1]
    pixels_N3HW = torch.cat(parts).byte().permute(0, 2, 3, 1).numpy()
    for pixels, image in zip(pixels_N3HW, images, strict=True):
        assert (pixels == SEEN.pixels(image)).all()
    assert found[:, 0].tolist() == [5, 40, 2]
