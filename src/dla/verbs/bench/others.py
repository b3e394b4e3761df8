"""What else the machine does while a benchmark runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from dla.errors import UnavailableError

__all__ = ["OthersWork"]

_NOT_WORK = ("idle", "iowait", "steal", "guest", "guest_nice")  # of psutil's words; a guest's time is its host's, too


class OthersWork:
    """The work of all processes but this one and those that it starts, from now on.

    Raises:
        UnavailableError: psutil is not installed.
    """

    def __init__(self) -> None:
        self.began, self.all, self.ours = time.perf_counter(), sum(_busy()), _own()

    def cores(self) -> float:
        """How many cores it kept busy so far, on average. The processes that this one started have ended."""
        seconds = time.perf_counter() - self.began
        return max(0.0, sum(_busy()) - self.all - (_own() - self.ours)) / seconds


def _busy() -> Iterator[float]:
    """Working seconds of each core that this process may use."""
    try:
        import psutil
    except ImportError:
        raise UnavailableError(
            "whether the machine is busy is seen by psutil, which is missing: pip install psutil"
        ) from None
    each = psutil.cpu_times(percpu=True)
    may_use = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    for core in may_use:
        yield sum(value for name, value in each[core]._asdict().items() if name not in _NOT_WORK)


def _own() -> float:
    return sum(os.times()[:4])
