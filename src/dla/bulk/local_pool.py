"""Workers in processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from dla.bulk.schedule import WorkerDeath
from dla.bulk.shard import BulkJob, ShardResult, ShardTask, ShardWorker
from dla.errors import DlaError

MOST_STARTS = 5  # processes in a row that die while they load the network, before the run ends
READY = "ready"
_ENDED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


@dataclass
class _LocalWorker:
    process: Any
    connection: Connection
    task: ShardTask | None = None
    loaded: bool = False


class LocalPool:
    """Processes that make shards, started as they are needed, at most `count`."""

    def __init__(self, job: BulkJob, count: int) -> None:
        self.job, self.count = job, count
        # fresh processes: a forked one would lack the threads of a runtime that this one has used
        self.context = multiprocessing.get_context("spawn")
        self.workers: list[_LocalWorker] = []
        self.failed_starts = 0

    def free(self) -> int:
        """Return how many more tasks it takes now."""
        return self.count - sum(worker.task is not None for worker in self.workers)

    def submit(self, task: ShardTask) -> None:
        """Give a task to a process without one, or to a new one."""
        worker = next((worker for worker in self.workers if worker.task is None), None)
        if worker is None:
            ours, theirs = self.context.Pipe()
            process = self.context.Process(target=_work, args=(self.job, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen
            worker = _LocalWorker(process, ours)
            self.workers.append(worker)
        worker.task = task
        with suppress(OSError):  # it is dead, as `wait` will see
            worker.connection.send(task)

    def wait(self) -> list[ShardResult | WorkerDeath]:
        """Return the results and deaths since.

        Raises:
            DlaError: no process can load the network; and what a worker raises.
        """
        events: list[ShardResult | WorkerDeath] = []
        while not events:
            events += self._events()
        return events

    def _events(self) -> list[ShardResult | WorkerDeath]:
        events: list[ShardResult | WorkerDeath] = []
        for connection in wait([worker.connection for worker in self.workers]):
            worker = next(worker for worker in self.workers if worker.connection is connection)
            try:
                answer = worker.connection.recv()
            except (EOFError, OSError):
                events += self._ended(worker)
                continue
            if isinstance(answer, BaseException):
                raise answer
            if answer == READY:
                worker.loaded, self.failed_starts = True, 0
                continue
            worker.task = None
            events.append(answer)
        return events

    def _ended(self, worker: _LocalWorker) -> list[ShardResult | WorkerDeath]:
        self.workers.remove(worker)
        worker.process.join()
        code, task = worker.process.exitcode, worker.task
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self.failed_starts += not worker.loaded and code not in _ENDED
        if self.failed_starts > MOST_STARTS:
            raise DlaError(f"the processes die while they load the network ({how}). Give fewer --processes, or look at "
                           f"the memory of this machine")  # fmt: skip
        return [] if task is None else [WorkerDeath(task, worker.loaded and code not in _ENDED, how)]

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join(2)
            if worker.process.is_alive():
                worker.process.kill()  # it waits for a disk
                worker.process.join()


def _work(job: BulkJob, connection: Connection) -> None:
    """Answer tasks until the other process closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        task = connection.recv()
        worker = ShardWorker(job)
        connection.send(READY)
        while True:
            connection.send(_result(worker, task))
            task = connection.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        connection.send(portable(error))


def _result(worker: Callable[[ShardTask], ShardResult], task: ShardTask) -> ShardResult:
    try:
        return worker(task)
    except MemoryError:
        os._exit(1)  # as if the system had killed it


def portable(error: Exception) -> Exception:
    """Return an error that can be sent to another process: ours and the system's as they are, others as text."""
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    if isinstance(error, DlaError):
        return error
    import traceback

    return RuntimeError("".join(traceback.format_exception(error)))
