"""Prefetch in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

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
