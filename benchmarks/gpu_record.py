"""Shared by the parts of `gpu.py`: a record written after each row, a deadline, and alternating rounds."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "timm", "numpy", "pillow", "torchvision", "triton", "kornia", "pytest")


@dataclass(frozen=True)
class Here:
    """Where a part runs: "cuda", or "cpu" in a rehearsal, with small sizes and without GPU-only rows."""

    device: str
    room: Path  # a folder for what is made on the way

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    def wait(self) -> None:
        """Wait until all launched kernels are done."""
        if self.device != "cpu":
            import torch

            torch.cuda.synchronize()


class SkippedError(Exception):
    """Why a row cannot run here."""


@dataclass
class Record:
    """The rows of one part, written to `file` after each row; no row starts after `seconds`."""

    file: Path
    part: str
    seconds: float
    facts: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    not_run: list[dict[str, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.seconds - (time.monotonic() - self.began)

    def row(self, name: str, measure: Callable[[], dict[str, Any]], needs: float = 0.0) -> None:
        """Run one measurement, unless less time than it `needs` is left; an error is recorded in the row."""
        began = time.monotonic()
        if self.left() <= needs:
            self.leave_out(name, "out of time")
            return
        try:
            found = measure()
        except SkippedError as why:
            self.leave_out(name, str(why))
            return
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        self.add(name, **found, took_s=round(time.monotonic() - began, 2))

    def add(self, name: str, **found: Any) -> None:
        self.rows.append({"row": name, **found})
        self.write()
        print(f"{name:56} " + "  ".join(f"{key} {_short(value)}" for key, value in found.items()), flush=True)

    def leave_out(self, name: str, why: str) -> None:
        self.not_run.append({"row": name, "why": why})
        self.write()
        print(f"{name:56} not run: {why}", flush=True)

    def write(self, finished: bool = False) -> None:
        whole = {
            "schema": "dla.gpu/1", "part": self.part, **self.facts, "seconds": round(self.seconds - self.left(), 1),
            "finished": finished, "rows": self.rows, "not_run": self.not_run,
        }  # fmt: skip
        aside = self.file.with_suffix(".part")
        aside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self.file)


class Child:
    """A process whose output is appended to a file, so that waiting for it does not wait for its children."""

    def __init__(self, words: list[str], log: Path) -> None:
        with log.open("ab") as file:
            self.process = subprocess.Popen(words, stdout=file, stderr=file, cwd=ROOT, process_group=0)

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float) -> int:
        """Return the exit code; raise a SkippedError if it took longer and was killed."""
        try:
            return self.process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            self.kill()
            raise SkippedError("out of time on the way") from None

    def kill(self) -> None:
        """Kill it and its children with SIGKILL."""
        if self.runs:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        return " ".join(f"{key}={_short(one)}" for key, one in value.items())
    return str(value)[:200]


def facts(device: str) -> dict[str, Any]:
    """Return the GPU's name and the versions."""
    import torch

    card: dict[str, Any] = {"device": "cpu, a rehearsal"}
    if device != "cpu":
        p = torch.cuda.get_device_properties(0)
        card = {"device": p.name, "memory_gib": round(p.total_memory / 2**30, 1), "sms": p.multi_processor_count,
                "capability": f"{p.major}.{p.minor}"}  # fmt: skip
    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return {**card, "cores": os.cpu_count(), "versions": found | {"torch": torch.__version__}}


@contextmanager
def numbers(tf32: bool = False, repeatable: bool = False) -> Iterator[None]:
    """Set how cuDNN and cuBLAS multiply float32 numbers, and whether cuDNN is deterministic."""
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32 = matmul.allow_tf32 = tf32
    cudnn.deterministic = repeatable
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic = before


def in_turns(here: Here, arms: dict[str, Callable[[], object]], turn_s: float, rounds: int) -> dict[str, list[float]]:
    """Return the seconds per call of each arm: every round runs each arm for about `turn_s`; the first is a warm-up."""
    if here.rehearsal:
        turn_s, rounds = 0.0, 1
    counts = {arm: _calls(here, call, turn_s) for arm, call in arms.items()}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(rounds + 1):
        for arm, call in arms.items():
            seconds = _timed(here, call, counts[arm])
            if turn:
                times[arm].append(seconds)
    return times


def _calls(here: Here, call: Callable[[], object], turn_s: float) -> int:
    for _ in range(3):
        call()
    return max(1, round(turn_s / max(_timed(here, call, 1), 1e-6)))


def _timed(here: Here, call: Callable[[], object], count: int) -> float:
    here.wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    here.wait()
    return (time.perf_counter() - began) / count


def compared(times: dict[str, list[float]], unit: float = 1000.0) -> dict[str, Any]:
    """Return medians (ms) and each arm's speed relative to timm: the median of the rounds, and the range."""
    found: dict[str, Any] = {"ms": {arm: round(unit * statistics.median(each), 4) for arm, each in times.items()}}
    for arm, each in times.items():
        if arm != "timm":
            ratios = sorted(t / d for t, d in zip(times["timm"], each, strict=True))
            found[f"{arm} against timm"] = [round(r, 3) for r in (statistics.median(ratios), ratios[0], ratios[-1])]
    return found
