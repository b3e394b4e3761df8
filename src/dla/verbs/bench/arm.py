"""One arm of a benchmark: a process of its own, which runs a network when it is told to.

It is started with an `Arm` as JSON, and writes a line of JSON when it is ready, or says why it cannot be; then one for
each line that it reads. It ends when there is nothing more to read: nothing is left over from a benchmark that died.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from dla.engines.machine import Precision, peak_memory
from dla.errors import DlaError
from dla.verbs.bench.rival import TIMM, run_timm

__all__ = ["PEAK", "Arm", "main"]

PEAK = "peak"  # in the place of an engine: what the machine can do at best
PEAK_SIDE = 2048  # of the square matrices that are multiplied
CALLS, TURN_S = 4, 0.5  # a turn is so many calls at least, and so many seconds


@dataclass(frozen=True, slots=True)
class Arm:
    """What one process runs: the network that `source` names, by an engine, `batch` photos of `size` at once.

    `engine` is one of `dla.engines.choose.ENGINES`, or `TIMM`, or `PEAK`, which multiplies matrices by itself.
    """

    engine: str
    source: str = ""
    precision: str = "fp32"
    batch: int = 1
    size: tuple[int, int] = (0, 0)
    threads: int | None = None


def main() -> None:
    """Serve until standard input ends."""
    # whatever a library prints must not come between the answers
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        run = _ready(Arm(**json.loads(sys.argv[1])))
        run()
    except DlaError as error:
        print(json.dumps({"exit_code": error.exit_code, "message": str(error)}), file=answers)
        return
    print(json.dumps({}), file=answers)
    for _ in sys.stdin:
        print(json.dumps({"seconds": _seconds(run), "memory": peak_memory()}), file=answers)


def _ready(arm: Arm) -> Callable[[], Any]:
    """One call of what the arm measures: from pixels to probabilities."""
    if arm.engine == PEAK:
        return _multiply()
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (arm.batch, *arm.size, 3), np.uint8)
    if arm.engine == TIMM:
        return run_timm(arm.source, pixels_NHW3, arm.threads)
    # both as `dla predict` does it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dla.verbs.engine import EngineOptions, open_engine

    options = EngineOptions("cpu", None, arm.engine, cast(Precision, arm.precision), arm.threads)
    engine, _ = open_engine(arm.source, options)
    if "dla.engines.torch" in sys.modules:
        sys.modules["dla.engines.torch"].keep_freed_memory()
    return lambda: engine.probabilities(pixels_NHW3)


def _multiply() -> Callable[[], Any]:
    a, b = np.random.default_rng(0).standard_normal((2, PEAK_SIDE, PEAK_SIDE), np.float32)
    return lambda: a @ b


def _seconds(run: Callable[[], Any]) -> list[float]:
    """Seconds of each call of one turn; the call that wakes the threads is not among them."""
    run()
    times: list[float] = []
    while len(times) < CALLS or sum(times) < TURN_S:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
