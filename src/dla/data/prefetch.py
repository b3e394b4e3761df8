"""Work ahead in threads or processes, in order."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

from dla.errors import DlaError

_STOPPING = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")
R = TypeVar("R")

BLOCKED_S = 0.25  # after this a thread counts as waiting for a disk that may never answer


def run_ahead(
    work: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: int,
    *,
    end_wait_s: float | None = BLOCKED_S,
    while_waiting: Callable[[], None] | None = None,
) -> Iterator[R]:
    """Yield `work(item)` for each item, in the items' order, computed at most `ahead` items in advance.

    Decoding and resizing release the GIL, so threads are enough, and no results are copied between processes. With
    `workers` 0 everything runs in the caller's thread. An exception is raised at its item's turn, and one from `items`,
    such as Ctrl-C, after the results of the items before it.

    Args:
        work: called by the threads.
        items: read in the caller's thread.
        workers: the number of threads.
        ahead: the number of items that are begun in advance.
        end_wait_s: the seconds to wait, if the caller stops or is interrupted, for threads in the middle of an item;
            None: until they finish it. A thread that still waits for a file is left behind, and does not keep the
            process alive.
        while_waiting: called several times a second while the next result is not ready; it may raise.
    """
    if workers == 0:
        yield from map(work, items)
        return
    source, waiting = iter(items), deque[Future[R]]()
    ended: BaseException | None = None

    def fill() -> None:
        nonlocal ended
        while ended is None and len(waiting) < ahead:
            try:
                waiting.append(threads.submit(next(source)))
            except (StopIteration, DlaError, KeyboardInterrupt, SystemExit) as error:
                ended = error

    threads = _Threads(work, workers)
    try:
        fill()
        while waiting and not (isinstance(ended, KeyboardInterrupt | SystemExit) and _blocked(waiting[0], end_wait_s)):
            result = _result(waiting.popleft(), while_waiting)
            fill()
            yield result
        if ended is not None and not isinstance(ended, StopIteration):
            raise ended
    finally:
        for future in waiting:
            future.cancel()
        threads.end(end_wait_s)


class _Threads(Generic[T, R]):
    """Threads that call `work` on what is submitted.

    Unlike those of a ThreadPoolExecutor, they do not keep the interpreter from ending while they wait for a disk.
    """

    def __init__(self, work: Callable[[T], R], count: int) -> None:
        self.work = work
        self.tasks: SimpleQueue[tuple[Future[R], T] | None] = SimpleQueue()
        self.threads = [Thread(target=self._run, name="dla-ahead", daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def submit(self, item: T) -> Future[R]:
        future: Future[R] = Future()
        self.tasks.put((future, item))
        return future

    def _run(self) -> None:
        while (task := self.tasks.get()) is not None:
            future, item = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self.work(item))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, item  # their pixels must not stay in memory until the next task

    def end(self, wait_s: float | None) -> None:
        """Have the threads end after the item that each is at, and wait for them, at most `wait_s`."""
        for _ in self.threads:
            self.tasks.put(None)
        end = None if wait_s is None else time.monotonic() + wait_s
        for thread in self.threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))


def _blocked(future: Future[R], wait_s: float | None) -> bool:
    return not wait([future], wait_s).done


def _result(future: Future[R], while_waiting: Callable[[], None] | None) -> R:
    while while_waiting is not None and not wait([future], BLOCKED_S).done:
        while_waiting()
    return future.result()


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
    context, others = multiprocessing.get_context("fork"), set(multiprocessing.active_children())
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_stopping_to_the_parent) as pool:
        try:
            with _signals_later():
                results = pool.map(work, items)
            yield from results
        except BrokenProcessPool:
            raise DlaError(f"a process that {what} was killed, perhaps for lack of memory. Try --workers 1") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            end = time.monotonic() + BLOCKED_S
            for process in set(multiprocessing.active_children()) - others:
                process.join(max(0.0, end - time.monotonic()))
                if process.is_alive():
                    process.kill()  # it waits for a file, perhaps for ever
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _signals_later() -> Iterator[None]:
    """Handle Ctrl-C and SIGTERM at the end: during a fork they would be lost in a hook, or leave a process behind.

    Blocking them in this thread is for the new processes, which have no handlers yet. Another thread may receive them
    all the same, and then this one runs their handlers.
    """
    seen: list[int] = []
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {n: signal.signal(n, lambda number, frame: seen.append(number)) for n in _STOPPING}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
    for number in seen[:1]:
        signal.raise_signal(number)


def _leave_stopping_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
