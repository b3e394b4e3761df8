"""A process that runs one case of a benchmark, and the class that controls it.

The process is started with a `BenchmarkCase` as JSON. It writes a line of JSON when it is ready, or with the error if
it cannot run, then runs a round for each line that it reads and writes the result. It ends when its standard input
ends, so none is left over when a benchmark dies.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from dla.benchmarking.baseline import TIMM, run_timm
from dla.engines.base import whole_network
from dla.engines.cpu import peak_memory
from dla.errors import CheckError, DlaError, UnavailableError, UsageError
from dla.options import EngineOptions, Precision

PEAK = "peak"  # in place of an engine: the machine's peak, by matrix multiplication
PEAK_SIDE = 2048  # of the square matrices
CALLS, ROUND_S = 4, 0.5  # the least calls and seconds of a round


@dataclass(frozen=True, slots=True)
class BenchmarkCase:
    """What one process runs: the network that `source` names, in an engine, on batches of `batch` photos of `size`.

    `engine` is one of `dla.engines.select.ENGINES`, or `TIMM`, or `PEAK`, which multiplies matrices without a network.
    """

    engine: str
    source: str = ""
    precision: str = "fp32"
    batch: int = 1
    size: tuple[int, int] = (0, 0)
    threads: int | None = None


def main() -> None:
    """Run rounds until standard input ends."""
    # keep the output of libraries out of the results
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    try:
        run = _ready(BenchmarkCase(**json.loads(sys.argv[1])))
        run()
    except DlaError as error:
        print(json.dumps({"exit_code": error.exit_code, "message": str(error)}), file=answers)
        return
    print(json.dumps({}), file=answers)
    for _ in sys.stdin:
        print(json.dumps({"seconds": _seconds(run), "peak_memory": peak_memory()}), file=answers)


def _ready(case: BenchmarkCase) -> Callable[[], Any]:
    """Return a function that makes one call of what the case measures, from pixels to its answer."""
    if case.engine == PEAK:
        return _multiply()
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (case.batch, *case.size, 3), np.uint8)
    if case.engine == TIMM:
        return run_timm(case.source, pixels_NHW3, case.threads)
    # the same setup as `dla predict`
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dla.inference.open_engine import open_engine

    options = EngineOptions("cpu", None, case.engine, cast(Precision, case.precision), case.threads)
    engine, model = open_engine(case.source, options)
    engine.own_process()
    compute = whole_network(engine, model.config.task != "classify")
    return lambda: compute(pixels_NHW3)


def _multiply() -> Callable[[], Any]:
    a, b = np.random.default_rng(0).standard_normal((2, PEAK_SIDE, PEAK_SIDE), np.float32)
    return lambda: a @ b


def _seconds(run: Callable[[], Any]) -> list[float]:
    """Return the seconds of each call of one round, without the first call, which wakes the threads."""
    run()
    times: list[float] = []
    while len(times) < CALLS or sum(times) < ROUND_S:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return times


_BY_EXIT_CODE = {kind.exit_code: kind for kind in (DlaError, UsageError, UnavailableError, CheckError)}


@dataclass(frozen=True, slots=True)
class Round:
    """The seconds of each call of one round, and the peak memory of the process so far, in bytes."""

    seconds: tuple[float, ...]
    peak_memory: int | None


class Worker:
    """Start a process for a case; call `wait` before the first round. Leaving the `with` block ends the process.

    `cache` is the folder for compiled networks, in place of the user's.
    """

    def __init__(self, case: BenchmarkCase, cache: str | None = None) -> None:
        self.case = case
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115  # read if the process ends too early
        env = os.environ | ({"DLA_CACHE": cache} if cache else {})
        # -P: do not import files of the current folder
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dla.benchmarking.worker", json.dumps(asdict(case))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, env=env, text=True, encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.stderr):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()

    def wait(self) -> None:
        """Wait until the process is ready.

        Raises:
            DlaError: the case cannot run here; with the class and message of the error in the process.
        """
        answer = self._answer()
        if answer:
            raise _BY_EXIT_CODE[answer["exit_code"]](answer["message"])

    def run_round(self) -> Round:
        """Run one round and return its results.

        Raises:
            DlaError: the process has ended.
        """
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # `_answer` then raises
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        answer = self._answer()
        return Round(tuple(answer["seconds"]), answer["peak_memory"])

    def _answer(self) -> Mapping[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)  # type: ignore[no-any-return]

    def _ended(self) -> DlaError:
        code = self.process.wait()
        self.stderr.seek(0)
        last = self.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        return DlaError(f"the process that ran {self.case.engine} {how}" + (f": {last}" if last else ""))


if __name__ == "__main__":
    main()
