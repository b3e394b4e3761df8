"""From the seconds of every call to what is told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any

from dla.benchmarking.worker import PEAK_SIDE, BenchmarkCase, Round
from dla.catalog import ModelInfo
from dla.text_table import text_table

__all__ = [
    "BENCH_SCHEMA",
    "BenchReport",
    "BenchRow",
    "BenchSkipped",
    "bench_table",
    "peak_flops",
    "rows_of",
    "skipped_lines",
]


BENCH_SCHEMA = "dla.bench/1"


@dataclass(frozen=True, slots=True)
class BenchRow:
    """How fast one network is by one engine with so many photos at once, from pixels to probabilities.

    `engine` is one of dla's, or "timm". `top1` is in per cent, published ("ImageNet-1k") or of the training's own
    validation photos ("own"), as `top1_on` says. `drawn` says that the weights are random: good for speed only.
    `p50_s` and `p95_s` are seconds of one call. `memory` is the most bytes that a process had which did nothing else.
    `of_peak` is the share of what the machine can do in fp32, for `macs` multiplications and as many additions a
    photo. `ratio` is how many times as fast it is as `ratio_to`, the first row with the same network and batch: the
    median over the rounds, and the smallest and largest.
    """

    model: str
    architecture: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    top1: float | None
    top1_on: str | None
    drawn: bool
    engine: str
    precision: str
    batch: int
    calls: int
    p50_s: float
    p95_s: float
    photos_per_s: float
    memory: int | None
    of_peak: float
    ratio_to: str
    ratio: float
    ratio_range: tuple[float, float]

    @property
    def arm(self) -> str:
        """What ran, in words: "openvino fp32"."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True, slots=True)
class BenchSkipped:
    """What was asked for and cannot be measured here, and why."""

    model: str
    engine: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured on one machine in one run.

    `peak_gflops` is how many 1e9 multiplications and additions in fp32 a second the machine did in the same run.
    `others_before` and `others_during` are the cores that other processes kept busy.
    """

    machine: str
    instructions: tuple[str, ...]
    cores: int
    threads: int | None
    rounds: int
    versions: Mapping[str, str]
    peak_gflops: float
    others_before: float
    others_during: float
    rows: tuple[BenchRow, ...]
    left_out: tuple[BenchSkipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        return {"schema": BENCH_SCHEMA, **asdict(self)}


def rows_of(
    model: str, found: ModelInfo, drawn: bool, measured: Mapping[BenchmarkCase, Sequence[Round]], peak: float
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


def peak_flops(turns: Sequence[Round]) -> float:
    """Multiplications and additions a second, of the square matrices that are multiplied in each call."""
    return 2 * PEAK_SIDE**3 / statistics.median(map(_middle, turns))


def _middle(turn: Round) -> float:
    return statistics.median(turn.seconds)


def _accuracy(found: ModelInfo) -> tuple[float | None, str | None]:
    """Per cent and on what photos: as published, else by the training's own record."""
    if found.published is not None:
        return found.published["top1"], "ImageNet-1k"
    measured = (found.results or {}).get("top1")
    return (100 * measured, "own") if isinstance(measured, float) else (None, None)


HEAD = ("photos", "engine", "p50 ms", "p95 ms", "photos/s", "of peak", "MB", "compared")


def bench_table(report: BenchReport) -> str:
    """The machine, a table a network, and what was left out."""
    return "\n".join([*_machine(report), *_tables(report.rows), *skipped_lines(report.left_out), ""])


def _machine(report: BenchReport) -> Iterator[str]:
    threads = report.threads or "each engine's own choice"
    yield f"{report.machine}; threads: {threads}"
    peak, others = f"{report.peak_gflops:.0f} GFLOP/s", f"{report.others_during:.1f} cores"
    yield f"peak in fp32: {peak} (matrices multiplied in between); others kept {others} busy"
    yield "versions: " + ", ".join(f"{package} {version}" for package, version in report.versions.items())


def _tables(rows: Sequence[BenchRow]) -> Iterator[str]:
    for _, same in groupby(rows, key=lambda row: row.model):
        network = list(same)
        yield ""
        yield _about(network[0])
        yield from text_table([HEAD, *map(_cells, network)], "><>>>>><")


def _about(row: BenchRow) -> str:
    _, height, width = row.input_size
    parts = [f"{row.model}: {row.params / 1e6:.1f} M parameters, {row.macs / 1e9:.2f} GMACs at {height}x{width}"]
    if row.top1 is not None:
        on = "on its own validation photos" if row.top1_on == "own" else "as published"
        parts.append(f"top-1 {row.top1:.1f} % {on}")
    return ", ".join(parts) + ("; random weights: speed only" if row.drawn else "")


def _cells(row: BenchRow) -> tuple[str, ...]:
    memory = "" if row.memory is None else f"{row.memory / 1e6:.0f}"
    first = row.arm == row.ratio_to
    compared = f"1: {row.arm}" if first else f"{row.ratio:.2f} ({row.ratio_range[0]:.2f} to {row.ratio_range[1]:.2f})"
    return (
        str(row.batch),
        row.arm,
        f"{1000 * row.p50_s:.1f}",
        f"{1000 * row.p95_s:.1f}",
        f"{row.photos_per_s:.1f}",
        f"{100 * row.of_peak:.0f} %",
        memory,
        compared,
    )


def skipped_lines(left_out: Sequence[BenchSkipped]) -> list[str]:
    """A line a reason."""
    reasons: dict[str, list[str]] = {}
    for left in left_out:
        arms = reasons.setdefault(left.reason, [])
        if (arm := f"{left.engine} {left.precision}") not in arms:
            arms.append(arm)
    return [f"left out: {', '.join(arms)}: {reason}" for reason, arms in reasons.items()]
