"""Work ahead in threads or processes, in order."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from dla.errors import DlaError

_STOPPING = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")
R = TypeVar("R")


def run_ahead(work: Callable[[T], R], items: Iterable[T], workers: int, ahead: int) -> Iterator[R]:
    """Yield `work(item)` for each item, in the items' order, computed at most `ahead` items in advance.

    Decoding and resizing release the GIL, so threads are enough, and no results are copied between processes. With
    `workers` 0 everything runs in the caller's thread. An exception is raised at its item's turn.
    """
    if workers == 0:
        yield from map(work, items)
        return
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="dla-ahead") as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(source, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def run_in_processes(work: Callable[[T], R], items: Sequence[T], workers: int, what: str) -> Iterator[R]:
    """Yield `work(item)` for each item, in the items' order, from processes if the system can fork, else from threads.

    Raises:
        DlaError: one of the processes, which `what` (such as "decoded photos"), was killed.
    """
    import multiprocessing  # here, because a prediction needs threads only
    from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor

    if workers < 2 or len(items) < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from run_ahead(work, items, workers, 2 * workers)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_stopping_to_the_parent) as pool:
        try:
            # A signal during a fork would be lost in a fork hook, or end a process that has no handler yet.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            try:
                results = pool.map(work, items)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield from results
        except BrokenProcessPool:
            raise DlaError(f"a process that {what} was killed, perhaps for lack of memory. Try --workers 1") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _leave_stopping_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
