"""From the seconds of every call to what is told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain

from dla.records import BenchRow, ModelInfo
from dla.verbs.bench.arm import PEAK_SIDE, Arm
from dla.verbs.bench.process import Turn

__all__ = ["peak_flops", "rows_of"]


def rows_of(
    model: str, found: ModelInfo, drawn: bool, measured: Mapping[Arm, Sequence[Turn]], peak: float
) -> list[BenchRow]:
    """A row an arm, of one network and batch; each is compared with the first, round by round.

    `peak` is what the machine can do in the same rounds, in operations a second.
    """
    top1, top1_on = _accuracy(found)
    base, base_turns = next(iter(measured.items()))
    rows = []
    for arm, turns in measured.items():
        seconds = sorted(chain.from_iterable(turn.seconds for turn in turns))
        p50_s = statistics.median(seconds)
        ratios = [_middle(b) / _middle(t) for b, t in zip(base_turns, turns, strict=True)]
        rows.append(
            BenchRow(
                model=model,
                architecture=found.architecture,
                params=found.params,
                macs=found.macs,
                input_size=found.input_size,
                top1=top1,
                top1_on=top1_on,
                drawn=drawn,
                engine=arm.engine,
                precision=arm.precision,
                batch=arm.batch,
                calls=len(seconds),
                p50_s=p50_s,
                p95_s=seconds[math.ceil(0.95 * len(seconds)) - 1],
                photos_per_s=arm.batch / p50_s,
                memory=turns[-1].memory,
                of_peak=2 * found.macs * arm.batch / p50_s / peak,
                ratio_to=f"{base.engine} {base.precision}",
                ratio=statistics.median(ratios),
                ratio_range=(min(ratios), max(ratios)),
            )
        )
    return rows


def peak_flops(turns: Sequence[Turn]) -> float:
    """Multiplications and additions a second, of the square matrices that are multiplied in each call."""
    return 2 * PEAK_SIDE**3 / statistics.median(map(_middle, turns))


def _middle(turn: Turn) -> float:
    return statistics.median(turn.seconds)


def _accuracy(found: ModelInfo) -> tuple[float | None, str | None]:
    """Per cent and on what photos: as published, else by the training's own record."""
    if found.published is not None:
        return found.published["top1"], "ImageNet-1k"
    measured = (found.results or {}).get("top1")
    return (100 * measured, "own") if isinstance(measured, float) else (None, None)
