"""The process that runs one case of a benchmark: a network, whenever it is told to.

It is started with a `BenchmarkCase` as JSON, and writes a line of JSON when it is ready, or says why it cannot be; then
one for each line that it reads. It ends when there is nothing more to read: nothing is left over from a benchmark that
died.
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
from dla.engines.cpu import peak_memory
from dla.errors import CheckError, DlaError, UnavailableError, UsageError
from dla.options import EngineOptions, Precision

__all__ = ["PEAK", "BenchmarkCase", "Round", "Worker", "main"]


PEAK = "peak"  # in the place of an engine: what the machine can do at best
PEAK_SIDE = 2048  # of the square matrices that are multiplied
CALLS, ROUND_S = 4, 0.5  # a round is at least so many calls, and so many seconds


@dataclass(frozen=True, slots=True)
class BenchmarkCase:
    """What one process runs: the network that `source` names, by an engine, `batch` photos of `size` at once.

    `engine` is one of `dla.engines.select.ENGINES`, or `TIMM`, or `PEAK`, which multiplies matrices by itself.
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
        run = _ready(BenchmarkCase(**json.loads(sys.argv[1])))
        run()
    except DlaError as error:
        print(json.dumps({"exit_code": error.exit_code, "message": str(error)}), file=answers)
        return
    print(json.dumps({}), file=answers)
    for _ in sys.stdin:
        print(json.dumps({"seconds": _seconds(run), "peak_memory": peak_memory()}), file=answers)


def _ready(case: BenchmarkCase) -> Callable[[], Any]:
    """One call of what the case measures: from pixels to probabilities."""
    if case.engine == PEAK:
        return _multiply()
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (case.batch, *case.size, 3), np.uint8)
    if case.engine == TIMM:
        return run_timm(case.source, pixels_NHW3, case.threads)
    # both as `dla predict` does it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from dla.inference.open_engine import open_engine

    options = EngineOptions("cpu", None, case.engine, cast(Precision, case.precision), case.threads)
    engine, _ = open_engine(case.source, options)
    engine.own_process()
    return lambda: engine.probabilities(pixels_NHW3)


def _multiply() -> Callable[[], Any]:
    a, b = np.random.default_rng(0).standard_normal((2, PEAK_SIDE, PEAK_SIDE), np.float32)
    return lambda: a @ b


def _seconds(run: Callable[[], Any]) -> list[float]:
    """Seconds of each call of one round; the call that wakes the threads is not among them."""
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
    """The seconds of each call of one round, and the peak memory of the process so far in bytes."""

    seconds: tuple[float, ...]
    peak_memory: int | None


class Worker:
    """A process that is being started; `wait` for it before its first round. A context: at its end the process ends.

    `cache` is the folder for compiled networks in place of the user's.
    """

    def __init__(self, case: BenchmarkCase, cache: str | None = None) -> None:
        self.case = case
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # what its libraries say, in case that it ends too early
        env = os.environ | ({"DLA_CACHE": cache} if cache else {})
        # -P: a file in the current folder that is called like a module is not imported
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dla.benchmarking.worker", json.dumps(asdict(case))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, env=env, text=True, encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.said):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            DlaError: it cannot run here; of the kind, and with the message, that it has by itself.
        """
        answer = self._answer()
        if answer:
            raise _BY_EXIT_CODE[answer["exit_code"]](answer["message"])

    def run_round(self) -> Round:
        """Let it run for one round."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
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
        self.said.seek(0)
        last = self.said.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        return DlaError(f"the process that ran {self.case.engine} {how}" + (f": {last}" if last else ""))


if __name__ == "__main__":
    main()
