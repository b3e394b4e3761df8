"""Build the rows of a benchmark report from the seconds of every call, and its JSON and table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, groupby
from typing import Any, Literal

from dla.benchmarking.worker import PEAK_SIDE, BenchmarkCase, Round
from dla.catalog import ModelInfo
from dla.errors import pip_line
from dla.text_table import text_table

BENCH_SCHEMA = "dla.bench/1"
DENSE_SCORES = {"miou": "mIoU", "ods": "ODS"}


@dataclass(frozen=True, slots=True)
class BenchRow:
    """The speed of one network in one engine at one batch size, from pixels to probabilities.

    `model` is the name as passed, `info` its description; with `random_weights` only the speed is meaningful. `engine`
    is one of dla's, or "timm". `p50_s` and `p95_s` are percentiles of the seconds per call, over `calls` calls.
    `peak_memory_bytes` is that of a process which did nothing else. `fraction_of_peak` is the rate of arithmetic
    (2 * `info.macs` operations per photo) as a fraction of the machine's peak in fp32, or None if the machine was busy
    or psutil is not installed. `speedup` is relative to `baseline`, the first row of the same network and batch: the
    median over the rounds, with the smallest and largest in `speedup_range`.
    """

    model: str
    info: ModelInfo
    random_weights: bool
    engine: str
    precision: str
    batch: int
    calls: int
    p50_s: float
    p95_s: float
    photos_per_s: float
    peak_memory_bytes: int | None
    fraction_of_peak: float | None
    baseline: str
    speedup: float
    speedup_range: tuple[float, float]

    @property
    def case(self) -> str:
        """Return engine and precision, such as "openvino fp32"."""
        return f"{self.engine} {self.precision}"

    @property
    def top1(self) -> float | None:
        """Return the top-1 accuracy in per cent on `top1_dataset`: as published, else as recorded by the training."""
        if self.info.published is not None:
            return self.info.published["top1"]
        measured = (self.info.results or {}).get("top1")
        return 100 * measured if isinstance(measured, float) else None

    @property
    def top1_dataset(self) -> Literal["ImageNet-1k", "own"] | None:
        """Return what `top1` was measured on; "own" means the validation photos of the training."""
        if self.info.published is not None:
            return "ImageNet-1k"
        return None if self.top1 is None else "own"

    @property
    def score(self) -> dict[str, Any] | None:
        """Return the score of a dense network on its own validation photos, as `metric` ("miou", "ods") and `value`."""
        results = self.info.results or {}
        metric = next((name for name in DENSE_SCORES if isinstance(results.get(name), float)), None)
        return None if metric is None else {"metric": metric, "value": results[metric]}

    def to_dict(self) -> dict[str, Any]:
        """Return the row as in JSON (docs/formats.md), flat."""
        known = {key: getattr(self.info, key) for key in ("architecture", "params", "macs", "input_size")}
        accuracy = {"top1": self.top1, "top1_dataset": self.top1_dataset, "score": self.score}
        measured = {key: getattr(self, key) for key in BenchRow.__slots__ if key not in ("model", "info")}
        return {"model": self.model, **known, **accuracy, **measured}


@dataclass(frozen=True, slots=True)
class BenchSkipped:
    """A case that cannot run on this machine, and why."""

    model: str
    engine: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The results of one run on one machine.

    `peak_gflops` is the machine's peak in the same run, in 1e9 fp32 multiplications and additions per second.
    `background_load_before` and `background_load_during` are the numbers of cores that other processes kept busy,
    or None without psutil.
    """

    machine: str
    instructions: tuple[str, ...]
    cores: int
    threads: int | None
    rounds: int
    versions: Mapping[str, str]
    peak_gflops: float
    background_load_before: float | None
    background_load_during: float | None
    rows: tuple[BenchRow, ...]
    skipped: tuple[BenchSkipped, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record = {"schema": BENCH_SCHEMA, **{key: getattr(self, key) for key in BenchReport.__slots__}}
        rows, skipped = [row.to_dict() for row in self.rows], [asdict(skipped) for skipped in self.skipped]
        return record | {"rows": rows, "skipped": skipped}


def rows_of(
    model: str,
    info: ModelInfo,
    random_weights: bool,
    measured: Mapping[BenchmarkCase, Sequence[Round]],
    peak: float,
) -> list[BenchRow]:
    """Build the rows of one network and batch; the first case is the baseline, compared with the others per round.

    `peak` is the machine's peak in the same rounds, in operations per second.
    """
    base, base_rounds = next(iter(measured.items()))
    rows = []
    for case, rounds in measured.items():
        seconds = sorted(chain.from_iterable(one.seconds for one in rounds))
        p50_s = statistics.median(seconds)
        speedups = [_median(b) / _median(r) for b, r in zip(base_rounds, rounds, strict=True)]
        rows.append(
            BenchRow(
                model=model,
                info=info,
                random_weights=random_weights,
                engine=case.engine,
                precision=case.precision,
                batch=case.batch,
                calls=len(seconds),
                p50_s=p50_s,
                p95_s=seconds[math.ceil(0.95 * len(seconds)) - 1],
                photos_per_s=case.batch / p50_s,
                peak_memory_bytes=rounds[-1].peak_memory,
                fraction_of_peak=2 * info.macs * case.batch / p50_s / peak,
                baseline=f"{base.engine} {base.precision}",
                speedup=statistics.median(speedups),
                speedup_range=(min(speedups), max(speedups)),
            )
        )
    return rows


def peak_flops(rounds: Sequence[Round]) -> float:
    """Return the multiplications and additions per second of the matrix products in these rounds."""
    return 2 * PEAK_SIDE**3 / statistics.median(map(_median, rounds))


def _median(one: Round) -> float:
    return statistics.median(one.seconds)


HEAD = ("batch", "engine", "p50 ms", "p95 ms", "photos/s", "of peak", "MB", "speedup")


def bench_table(report: BenchReport) -> str:
    """Return the report as text: the machine, the rows of each network, and the skipped cases."""
    return "\n".join([*_machine(report), *_tables(report.rows), *skipped_lines(report.skipped), ""])


def _machine(report: BenchReport) -> Iterator[str]:
    threads = report.threads or "each engine's own choice"
    yield f"{report.machine}; threads: {threads}"
    load = report.background_load_during
    background = f"unknown without psutil ({pip_line('bench')})" if load is None else f"{load:.1f} cores"
    left_out = "; of peak is left out" if any(row.fraction_of_peak is None for row in report.rows) else ""
    yield (f"peak in fp32: {report.peak_gflops:.0f} GFLOP/s (matrix multiplication in each round); "
           f"background load: {background}{left_out}")  # fmt: skip
    yield "versions: " + ", ".join(f"{package} {version}" for package, version in report.versions.items())


def _tables(rows: Sequence[BenchRow]) -> Iterator[str]:
    for _, same in groupby(rows, key=lambda row: row.model):
        network = list(same)
        yield ""
        yield _about(network[0])
        yield from text_table([HEAD, *map(_cells, network)], "><>>>>><")


def _about(row: BenchRow) -> str:
    _, height, width = row.info.input_size
    parts = [
        f"{row.model}: {row.info.params / 1e6:.1f} M parameters, {row.info.macs / 1e9:.2f} GMACs at {height}x{width}"
    ]
    if row.top1 is not None:
        on = "on its own validation photos" if row.top1_dataset == "own" else "as published"
        parts.append(f"top-1 {row.top1:.1f} % {on}")
    if row.score is not None:
        parts.append(f"{DENSE_SCORES[row.score['metric']]} {row.score['value']:.3f} on its own validation photos")
    return ", ".join(parts) + ("; random weights: speed only" if row.random_weights else "")


def _cells(row: BenchRow) -> tuple[str, ...]:
    memory = "" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 1e6:.0f}"
    low, high = row.speedup_range
    speedup = f"1: {row.case}" if row.case == row.baseline else f"{row.speedup:.2f} ({low:.2f} to {high:.2f})"
    return (
        str(row.batch),
        row.case,
        f"{1000 * row.p50_s:.1f}",
        f"{1000 * row.p95_s:.1f}",
        f"{row.photos_per_s:.1f}",
        "" if row.fraction_of_peak is None else f"{100 * row.fraction_of_peak:.0f} %",
        memory,
        speedup,
    )


def skipped_lines(skipped: Sequence[BenchSkipped]) -> list[str]:
    """Return one line per reason, with the cases skipped for it."""
    reasons: dict[str, list[str]] = {}
    for one in skipped:
        cases = reasons.setdefault(one.reason, [])
        if (case := f"{one.engine} {one.precision}") not in cases:
            cases.append(case)
    return [f"skipped: {', '.join(cases)}: {reason}" for reason, cases in reasons.items()]
