"""A benchmark as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from dla.records import BenchLeftOut, BenchReport, BenchRow

__all__ = ["bench_table", "left_out_lines"]

HEAD = "photos  engine            p50 ms   p95 ms  photos/s  of peak     MB  compared"


def bench_table(report: BenchReport) -> str:
    """The machine, a table a network, and what was left out."""
    return "\n".join([*_machine(report), *_tables(report.rows), *left_out_lines(report.left_out), ""])


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
        yield HEAD
        yield from map(_line, network)


def _about(row: BenchRow) -> str:
    _, height, width = row.input_size
    parts = [f"{row.model}: {row.params / 1e6:.1f} M parameters, {row.macs / 1e9:.2f} GMACs at {height}x{width}"]
    if row.top1 is not None:
        on = "on its own validation photos" if row.top1_on == "own" else "as published"
        parts.append(f"top-1 {row.top1:.1f} % {on}")
    return ", ".join(parts) + ("; random weights: speed only" if row.drawn else "")


def _line(row: BenchRow) -> str:
    memory = "" if row.memory is None else f"{row.memory / 1e6:.0f}"
    first = row.arm == row.ratio_to
    compared = f"1: {row.arm}" if first else f"{row.ratio:.2f} ({row.ratio_range[0]:.2f} to {row.ratio_range[1]:.2f})"
    return (f"{row.batch:>6}  {row.arm:<15}{1000 * row.p50_s:>9.1f}{1000 * row.p95_s:>9.1f}{row.photos_per_s:>10.1f}"
            f"{100 * row.of_peak:>7.0f} %{memory:>7}  {compared}")  # fmt: skip


def left_out_lines(left_out: Sequence[BenchLeftOut]) -> list[str]:
    """A line a reason."""
    reasons: dict[str, list[str]] = {}
    for left in left_out:
        arms = reasons.setdefault(left.reason, [])
        if (arm := f"{left.engine} {left.precision}") not in arms:
            arms.append(arm)
    return [f"left out: {', '.join(arms)}: {reason}" for reason, arms in reasons.items()]
