"""Have a pool of workers make all shards, whatever becomes of the workers.

A shard whose worker dies is tried again; if the worker dies again, the photos that kill it are searched for by halves,
and the shard is made without them. So a part depends on its photos alone, not on what happened to its workers. A
worker that was lost with its machine, or stopped by a signal to end, does not count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from dla.bulk.shard import ShardResult, ShardTask
from dla.errors import DlaError
from dla.types import NO_PROGRESS, Progress

TRIES = 2  # deaths of a whole shard, or of a photo alone, that make it suspicious


@dataclass(frozen=True)
class WorkerDeath:
    """A worker died over a task: by itself, or with its machine or by a signal to end."""

    task: ShardTask
    by_itself: bool
    how: str


class WorkerPool(Protocol):
    """Workers in processes."""

    def free(self) -> int:
        """Return how many more tasks it takes now."""

    def submit(self, task: ShardTask) -> None:
        """Give a task to a free worker."""

    def wait(self) -> list[ShardResult | WorkerDeath]:
        """Return what has happened since, at least one event; raise the error of a task or of a worker's start."""

    def close(self) -> None:
        """End the workers."""


@dataclass
class _Search:
    """The search for the photos that kill the worker of a shard."""

    shard: ShardTask
    deaths: int = 0
    searching: int = 0  # tasks that are not finished
    of_photo: Counter[int] = field(default_factory=Counter)
    dead: set[int] = field(default_factory=set)


class Scheduler:
    """Makes shards by a pool. `results` yields those whose parts are written, in any order."""

    def __init__(self, pool: WorkerPool, shards: Iterable[ShardTask], progress: Progress = NO_PROGRESS) -> None:
        self.pool, self.progress = pool, progress
        self.waiting = deque[ShardTask]()
        self.shards = iter(shards)
        self.searches: dict[int, _Search] = {}
        self.running = 0

    def results(self) -> Iterator[ShardResult]:
        """Yield the result of each shard.

        Raises:
            DlaError: a shard's worker dies though each of its photos can be answered.
        """
        self._submit()
        while self.running:
            for event in self.pool.wait():
                self.running -= 1
                if isinstance(event, WorkerDeath):
                    self._died(event)
                elif event.task.write:
                    self.searches.pop(event.task.shard, None)
                    yield event
                else:
                    self._searched(self.searches[event.task.shard])
            self._submit()

    def _submit(self) -> None:
        while self.pool.free() > 0:
            task = self.waiting.popleft() if self.waiting else next(self.shards, None)
            if task is None:
                return
            self.pool.submit(task)
            self.running += 1

    def _died(self, death: WorkerDeath) -> None:
        task = death.task
        self.progress.log(f"the process of shard {task.shard} died ({death.how}), and what it was at is done again")
        if not death.by_itself:
            self.waiting.append(task)
            return
        search = self.searches.setdefault(task.shard, _Search(task))
        if task.write:
            search.deaths += 1
            if search.deaths % TRIES:
                self.waiting.append(task)
            elif search.deaths > TRIES:
                raise DlaError(
                    f"the process that made shard {task.shard} died {search.deaths} times ({death.how}), though it "
                    "answers each photo. Give it more memory, or a smaller --rows-per-shard in another --output"
                )
            else:
                self._halve(search, task)
            return
        if len(task.rows) > 1:
            self._halve(search, task)
        else:
            search.of_photo[task.rows.start] += 1
            if search.of_photo[task.rows.start] < TRIES:
                self.waiting.append(task)
                return
            search.dead.add(task.rows.start)
        self._searched(search)

    def _halve(self, search: _Search, task: ShardTask) -> None:
        middle = (len(task.rows) + 1) // 2
        halves = [rows for rows in (task.rows[:middle], task.rows[middle:]) if rows]
        self.waiting.extend(replace(task, rows=rows, write=False) for rows in halves)
        search.searching += len(halves)

    def _searched(self, search: _Search) -> None:
        """Count a finished task of a search; after the last one, make the shard without the photos that were found."""
        search.searching -= 1
        if not search.searching:
            self.waiting.append(replace(search.shard, dead=frozenset(search.dead)))
