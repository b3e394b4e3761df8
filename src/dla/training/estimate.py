"""Estimate the cost of a run (`dla train --dry-run`), and search for a learning rate (`--find-lr`)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch

from dla.drawing.shapes import to_png
from dla.engines.cpu import peak_memory
from dla.errors import DlaError
from dla.html_report.charts import Series, line_chart
from dla.options import PhotoCache, RuntimeOptions
from dla.storage.files import write_file
from dla.training.batches import TrainBatches
from dla.training.memory import enough_memory
from dla.training.recipe import Recipe
from dla.training.run import with_fitting_batch
from dla.training.setup import TASKS, Setup, check_apart, set_up, with_data
from dla.training.task import Batch, Runtime
from dla.types import NO_PROGRESS, Progress

STEPS, VAL_BATCHES = 3, 2
RATE_FACTOR = 1e-3  # on the learning rate: only the time of the steps matters, and they must not diverge


@dataclass(frozen=True)
class RunEstimate:
    """The estimated cost of a run, from a few real steps at each crop size.

    `step_seconds` is by the (height, width) of the crops in pixels. `peak_bytes` is the peak memory of the process, or
    of PyTorch on a GPU; None if the system does not report it.
    """

    parameters: int
    trainable: int
    train: int
    val: int
    classes: int
    batch_size: int
    steps_per_epoch: int
    epochs: int
    step_seconds: dict[tuple[int, int], float]
    val_seconds: float
    total_seconds: float
    peak_bytes: int | None


def estimate_run(
    recipe: Recipe,
    *,
    workers: int = RuntimeOptions.workers,
    device: str = RuntimeOptions.device,
    cache: PhotoCache = RuntimeOptions.photo_cache,
    lower_batch: bool = False,
    progress: Progress = NO_PROGRESS,
) -> RunEstimate:
    """Estimate the cost of a run by a few steps on its photos. Arguments and errors are those of `train`."""
    recipe = with_data(recipe, None)
    runtime = Runtime.from_options(workers, device, cache, progress)
    splits = TASKS[recipe.task].open_photos(recipe, runtime)
    recipe = with_fitting_batch(recipe, splits, lower_batch, progress)
    with torch.random.fork_rng([]), enough_memory(recipe):
        setup = set_up(recipe, splits, runtime)
        sizes = _sizes(recipe, setup)
        progress.start("measuring steps", len(sizes) * (STEPS + 1), "steps")
        seconds = {size: _step_seconds(setup, recipe, *first, progress) for size, (first, _) in sizes.items()}
        val_seconds = _val_seconds(setup)
    parameters = list(setup.trainer.network.parameters())
    return RunEstimate(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        train=len(splits.train),
        val=len(splits.val),
        classes=len(splits.train.class_ids),
        batch_size=recipe.batch_size,
        steps_per_epoch=setup.batches.steps,
        epochs=recipe.epochs,
        step_seconds=seconds,
        val_seconds=val_seconds,
        total_seconds=sum(seconds[size] * count for size, (_, count) in sizes.items()) + recipe.epochs * val_seconds,
        peak_bytes=_peak(runtime.device),
    )


def _sizes(recipe: Recipe, setup: Setup) -> dict[tuple[int, int], tuple[tuple[int, int], int]]:
    """Return, by the size of the crops, the first (epoch, step) with it and the number of such steps."""
    sizes: dict[tuple[int, int], tuple[tuple[int, int], int]] = {}
    for epoch in range(recipe.epochs):
        for step in range(setup.batches.steps):
            size = setup.batches.samples.size_at(epoch, step)
            first, count = sizes.get(size, ((epoch, step), 0))
            sizes[size] = first, count + 1
    return sizes


def _step_seconds(setup: Setup, recipe: Recipe, epoch: int, step: int, progress: Progress) -> float:
    """Return the median time of a step on this batch in seconds, after one warm-up step. Loading is not included."""
    batch = next(setup.batches.epoch(epoch, step))
    times = []
    for _ in range(STEPS + 1):
        began = time.monotonic()
        setup.trainer.step(batch, recipe.lr * RATE_FACTOR)
        times.append(time.monotonic() - began)
        progress.advance()
    return sorted(times[1:])[STEPS // 2]


def _val_seconds(setup: Setup) -> float:
    """Return the time of one validation in seconds, extrapolated from a few batches."""
    whole = setup.validation
    count = len(whole)
    some = min(count, VAL_BATCHES * whole.batch_size)
    network = setup.trainer.stored()
    began = time.monotonic()
    whole.first(some).measure(network)
    return (time.monotonic() - began) * count / some


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


SWEEP_STEPS, LOWEST, HIGHEST = 100, 1e-6, 10.0
SMOOTHING = 0.9  # decay of the running mean of the losses
DIVERGED = 4.0  # times the best loss, where the sweep ends
RATE_MARGIN = 0.1  # of the rate with the lowest loss, which is close to divergence


@dataclass(frozen=True)
class RateSweep:
    """Smoothed losses at rising learning rates, and the proposed rate."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    proposed: float


def find_learning_rate(
    recipe: Recipe,
    picture: Path,
    *,
    workers: int = RuntimeOptions.workers,
    device: str = RuntimeOptions.device,
    cache: PhotoCache = RuntimeOptions.photo_cache,
    lower_batch: bool = False,
    progress: Progress = NO_PROGRESS,
) -> RateSweep:
    """Raise the learning rate from step to step until the loss diverges, propose a rate, and draw the curve.

    Args:
        recipe: the run to find a rate for.
        picture: the PNG file to write.
        workers: as for `train`, like the rest.
        device: as for `train`.
        cache: as for `train`.
        lower_batch: as for `train`.
        progress: as for `train`.

    Raises:
        DlaError: the loss grows from the lowest rate on. Other errors are those of `train`.
    """
    recipe = with_data(recipe, None)
    check_apart(picture.parent, recipe)
    runtime = Runtime.from_options(workers, device, cache, progress)
    splits = TASKS[recipe.task].open_photos(recipe, runtime)
    recipe = with_fitting_batch(recipe, splits, lower_batch, progress)
    with torch.random.fork_rng([]), enough_memory(recipe):
        setup = set_up(recipe, splits, runtime)
        rates, losses = [], []
        progress.start("raising the learning rate", SWEEP_STEPS, "steps")
        for i, batch in enumerate(islice(_batches(setup.batches), SWEEP_STEPS)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (i / (SWEEP_STEPS - 1))
            try:
                loss, _ = setup.trainer.step(batch, rate)
            except DlaError:  # the loss is no longer finite
                break
            setup.trainer.position.step += 1
            progress.advance()
            rates.append(rate)
            losses.append(loss)
            if smoothed(losses)[-1] > DIVERGED * min(smoothed(losses)):
                break
    sweep = RateSweep(tuple(rates), tuple(smoothed(losses)), suggest_rate(rates, smoothed(losses)))
    draw_rates(sweep, picture)
    return sweep


def _batches(batches: TrainBatches) -> Iterator[Batch]:
    """Yield batches epoch after epoch, without end."""
    for epoch in count():
        yield from batches.epoch(epoch, 0)


def smoothed(losses: list[float]) -> list[float]:
    """Return the exponential moving average of the losses, with bias correction."""
    means, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**i))
    return means


def suggest_rate(rates: list[float], losses: list[float]) -> float:
    """Return a tenth of the rate with the lowest loss, rounded to two digits.

    Raises:
        DlaError: the loss is lowest at the lowest rate.
    """
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    if best == 0:
        raise DlaError(f"the loss only grows, even at a learning rate of {LOWEST:g}. Check the photos and their labels")
    rate = RATE_MARGIN * rates[best]
    digits = 1 - math.floor(math.log10(rate))
    return round(rate, digits)


def draw_rates(sweep: RateSweep, path: Path) -> None:
    """Draw the losses over the learning rates (logarithmic) into a PNG, with a line at the proposed rate."""
    page = line_chart(
        [Series("loss, running mean", sweep.rates, sweep.losses)],
        "learning rate",
        log_x=True,
        mark=(f"proposed: {sweep.proposed:g}", sweep.proposed),
    )
    assert page is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, to_png(page))
