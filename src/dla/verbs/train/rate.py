"""Which learning rate suits: `dla train --find-lr` (Smith 2017)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import torch

from dla.data.store import Cache
from dla.errors import DlaError
from dla.recipes.schema import Recipe
from dla.report.curve import check_can_draw, draw_rates
from dla.verbs.train.batches import Batch, TrainBatches
from dla.verbs.train.memory import enough_memory
from dla.verbs.train.run import open_photos
from dla.verbs.train.setup import Means, check_apart, set_up, with_photos

__all__ = ["RateCurve", "find_rate"]

STEPS, LOWEST, HIGHEST = 100, 1e-6, 10.0
MEMORY = 0.9  # of the running mean of the losses
TOO_MUCH = 4.0  # times the best loss: what comes after says nothing
BELOW_THE_BEST = 0.1  # of the rate at which the loss was lowest, beyond which it would soon grow


@dataclass(frozen=True)
class RateCurve:
    """Smoothed losses at rising learning rates, and the proposed one."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    proposed: float


def find_rate(
    recipe: Recipe,
    picture: Path,
    *,
    workers: int = 2,
    device: str = "auto",
    cache: Cache = "none",
    say: Callable[[str], None] = lambda text: None,
) -> RateCurve:
    """Let the learning rate rise from step to step until the loss grows; draw the curve into a PNG.

    The other arguments and errors are those of `train`; and

    Raises:
        DlaError: the loss grew at once.
        UnavailableError: matplotlib is missing.
    """
    check_can_draw()
    recipe = with_photos(recipe, None)
    check_apart(picture.parent, recipe)
    means = Means.named(workers, device, cache, say)
    splits = open_photos(recipe, means)
    with torch.random.fork_rng([]), enough_memory(recipe):
        setup = set_up(recipe, splits, means)
        rates, losses = [], []
        for i, batch in enumerate(islice(_batches(setup.batches), STEPS)):
            rate = LOWEST * (HIGHEST / LOWEST) ** (i / (STEPS - 1))
            try:
                loss, _ = setup.fit.step(batch, rate)
            except DlaError:  # not finite any more
                break
            setup.fit.at.step += 1
            rates.append(rate)
            losses.append(loss)
            if smoothed(losses)[-1] > TOO_MUCH * min(smoothed(losses)):
                break
    curve = RateCurve(tuple(rates), tuple(smoothed(losses)), proposal(rates, smoothed(losses)))
    draw_rates(curve.rates, curve.losses, curve.proposed, picture)
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


def proposal(rates: list[float], losses: list[float]) -> float:
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
