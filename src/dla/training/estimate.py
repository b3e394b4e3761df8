"""What a run would take: `dla train --dry-run`. Nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import torch

from dla.drawing.shapes import to_png
from dla.engines.cpu import peak_memory
from dla.errors import DlaError
from dla.html_report.charts import Series, line_chart
from dla.options import PhotoCache, RuntimeOptions
from dla.storage.files import write_file
from dla.training.batches import Batch, TrainBatches
from dla.training.memory import enough_memory
from dla.training.recipe import Recipe
from dla.training.run import open_photos
from dla.training.setup import Runtime, Setup, check_apart, set_up, with_data
from dla.types import NO_PROGRESS, Progress

__all__ = ["RateSweep", "RunEstimate", "draw_rates", "estimate_run", "find_learning_rate"]


STEPS, VAL_BATCHES = 3, 2
GENTLY = 1e-3  # of the learning rate: the steps are for their time, and should not run into numbers without end


@dataclass(frozen=True)
class RunEstimate:
    """What a run would take, by a few real steps of each size of crop.

    `step_seconds` is by the side of the crops in pixels; `peak_bytes` is the process's, or on a GPU PyTorch's
    there, and None where the system does not say.
    """

    parameters: int
    learning: int
    train: int
    val: int
    classes: int
    steps_per_epoch: int
    epochs: int
    step_seconds: dict[int, float]
    val_seconds: float
    total_seconds: float
    peak_bytes: int | None


def estimate_run(
    recipe: Recipe,
    *,
    workers: int = RuntimeOptions.workers,
    device: str = RuntimeOptions.device,
    cache: PhotoCache = RuntimeOptions.photo_cache,
    progress: Progress = NO_PROGRESS,
) -> RunEstimate:
    """Measure a few steps of the recipe on its photos. Arguments and errors are those of `train`."""
    recipe = with_data(recipe, None)
    runtime = Runtime.from_options(workers, device, cache, progress)
    splits = open_photos(recipe, runtime)
    with torch.random.fork_rng([]), enough_memory(recipe):
        setup = set_up(recipe, splits, runtime)
        sides = _sides(recipe, setup)
        progress.start("trying steps", len(sides) * (STEPS + 1), "steps")
        seconds = {side: _step_seconds(setup, recipe, *first, progress) for side, (first, _) in sides.items()}
        val_seconds = _val_seconds(setup)
    parameters = list(setup.trainer.network.parameters())
    return RunEstimate(
        parameters=sum(p.numel() for p in parameters),
        learning=sum(p.numel() for p in parameters if p.requires_grad),
        train=len(splits.train),
        val=len(splits.val),
        classes=len(splits.train.class_ids),
        steps_per_epoch=setup.batches.steps,
        epochs=recipe.epochs,
        step_seconds=seconds,
        val_seconds=val_seconds,
        total_seconds=sum(seconds[side] * count for side, (_, count) in sides.items()) + recipe.epochs * val_seconds,
        peak_bytes=_peak(runtime.device),
    )


def _sides(recipe: Recipe, setup: Setup) -> dict[int, tuple[tuple[int, int], int]]:
    """For each side of the crops the first epoch and step that have it, and how many steps do."""
    own = min(setup.initial.preprocessing.size)
    found: dict[int, tuple[tuple[int, int], int]] = {}
    for epoch in range(recipe.epochs):
        for step in range(setup.batches.steps):
            side = recipe.input.size_at(epoch, step, own)
            first, count = found.get(side, ((epoch, step), 0))
            found[side] = first, count + 1
    return found


def _step_seconds(setup: Setup, recipe: Recipe, epoch: int, step: int, progress: Progress) -> float:
    """The median of some steps on this batch, after one that is not counted. Its making is not in it."""
    batch = next(setup.batches.epoch(epoch, step))
    times = []
    for _ in range(STEPS + 1):
        began = time.monotonic()
        setup.trainer.step(batch, recipe.lr * GENTLY)
        times.append(time.monotonic() - began)
        progress.advance()
    return sorted(times[1:])[STEPS // 2]


def _val_seconds(setup: Setup) -> float:
    """An epoch's validation, from a part of it."""
    whole = setup.validation
    count = len(whole.targets_N)
    some = min(count, VAL_BATCHES * whole.batch_size)
    network = setup.trainer.stored()
    began = time.monotonic()
    replace(whole, targets_N=whole.targets_N[:some]).logits(network, setup.trainer)
    return (time.monotonic() - began) * count / some


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


SWEEP_STEPS, LOWEST, HIGHEST = 100, 1e-6, 10.0
MEMORY = 0.9  # of the running mean of the losses
TOO_MUCH = 4.0  # times the best loss: what comes after says nothing
BELOW_THE_BEST = 0.1  # of the rate at which the loss was lowest, beyond which it would soon grow


@dataclass(frozen=True)
class RateSweep:
    """Smoothed losses at rising learning rates, and the proposed one."""

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
    progress: Progress = NO_PROGRESS,
) -> RateSweep:
    """Let the learning rate rise from step to step until the loss grows; draw the curve into a PNG.

    The other arguments and errors are those of `train`; and

    Raises:
        DlaError: the loss grew at once.
    """
    recipe = with_data(recipe, None)
    check_apart(picture.parent, recipe)
    runtime = Runtime.from_options(workers, device, cache, progress)
    splits = open_photos(recipe, runtime)
    with torch.random.fork_rng([]), enough_memory(recipe):
        setup = set_up(recipe, splits, runtime)
        rates, losses = [], []
        progress.start("raising the learning rate", SWEEP_STEPS, "steps")
        for i, batch in enumerate(islice(_batches(setup.batches), SWEEP_STEPS)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (i / (SWEEP_STEPS - 1))
            try:
                loss, _ = setup.trainer.step(batch, rate)
            except DlaError:  # not finite any more
                break
            setup.trainer.position.step += 1
            progress.advance()
            rates.append(rate)
            losses.append(loss)
            if smoothed(losses)[-1] > TOO_MUCH * min(smoothed(losses)):
                break
    curve = RateSweep(tuple(rates), tuple(smoothed(losses)), suggest_rate(rates, smoothed(losses)))
    draw_rates(curve, picture)
    return curve


def _batches(batches: TrainBatches) -> Iterator[Batch]:
    """An epoch after another."""
    for epoch in count():
        yield from batches.epoch(epoch, 0)


def smoothed(losses: list[float]) -> list[float]:
    """The running mean of the losses, without the pull of its beginning at zero."""
    means, mean = [], 0.0
    for i, loss in enumerate(losses, 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        means.append(mean / (1 - MEMORY**i))
    return means


def suggest_rate(rates: list[float], losses: list[float]) -> float:
    """A tenth of the rate at which the loss was lowest, to two digits.

    Raises:
        DlaError: it was lowest at the lowest rate.
    """
    best = min(range(len(losses)), key=losses.__getitem__, default=0)
    if best == 0:
        raise DlaError(f"the loss only grows from a learning rate of {LOWEST:g} on. Is something wrong with the data?")
    rate = BELOW_THE_BEST * rates[best]
    digits = 1 - math.floor(math.log10(rate))
    return round(rate, digits)


def draw_rates(sweep: RateSweep, path: Path) -> None:
    """Draw the losses over the learning rates (logarithmic), with a line at the proposed one, into a PNG."""
    page = line_chart(
        [Series("loss, running mean", sweep.rates, sweep.losses)],
        "learning rate",
        log_x=True,
        mark=(f"proposed: {sweep.proposed:g}", sweep.proposed),
    )
    assert page is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, to_png(page))
