"""Shards and dying workers, with a pool that is told who dies."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dla.bulk.schedule import Scheduler, WorkerDeath
from dla.bulk.shard import ShardResult, ShardTask
from dla.errors import DlaError

Fate = Callable[[ShardTask], bool | None]  # True: died by itself; False: lost; None: done


class Told:
    def __init__(self, fate: Fate, workers: int = 3) -> None:
        self.fate, self.workers = fate, workers
        self.given = deque[ShardTask]()
        self.begun: list[ShardTask] = []

    def free(self) -> int:
        return self.workers - len(self.given)

    def submit(self, task: ShardTask) -> None:
        assert self.free() > 0
        self.given.append(task)
        self.begun.append(task)

    def wait(self) -> list[ShardResult | WorkerDeath]:
        task = self.given.pop()  # the newest first: shards end in any order
        died = self.fate(task)
        return [ShardResult(task) if died is None else WorkerDeath(task, died, "signal 9")]

    def close(self) -> None:
        pass


def shards(count: int, rows: int) -> list[ShardTask]:
    return [ShardTask(k, range(k * rows, (k + 1) * rows)) for k in range(count)]


def deadly(*rows: int) -> Fate:
    return lambda task: True if set(rows) & (set(task.rows) - task.dead) else None


@given(st.sets(st.integers(0, 49), max_size=5), st.integers(1, 4))
def test_the_photos_that_kill_are_found_and_no_others(rows: set[int], workers: int) -> None:
    pool = Told(deadly(*rows), workers)
    results = list(Scheduler(pool, shards(5, 10)).results())
    assert sorted(result.task.shard for result in results) == [0, 1, 2, 3, 4]
    assert set().union(*(result.task.dead for result in results)) == rows
    assert all(result.task.dead <= set(result.task.rows) for result in results)


def test_one_death_of_a_worker_changes_nothing() -> None:
    died: list[ShardTask] = []

    def once(task: ShardTask) -> bool | None:
        if task.shard != 1 or died:
            return None
        died.append(task)
        return True

    pool = Told(once)
    results = list(Scheduler(pool, shards(3, 10)).results())
    assert [result.task.dead for result in results] == [frozenset()] * 3
    assert len(pool.begun) == 4  # the shard as a whole, once more


def test_lost_machines_do_not_count_however_often() -> None:
    left = 20

    def lost(task: ShardTask) -> bool | None:
        nonlocal left
        left -= 1
        return False if left > 0 else None

    results = list(Scheduler(Told(lost), shards(2, 10)).results())
    assert [result.task.dead for result in results] == [frozenset()] * 2


def test_a_shard_that_dies_though_none_of_its_photos_does_ends_the_run() -> None:
    pool = Told(lambda task: True if len(task.rows) > 2 else None)
    with pytest.raises(DlaError, match="died 4 times .signal 9., though it answers each photo"):
        list(Scheduler(pool, shards(1, 8)).results())


def test_shards_are_taken_as_they_are_needed() -> None:
    """A run has thousands: they are not all given out at once."""
    taken: list[int] = []

    def numbered() -> object:
        for task in shards(100, 1):
            taken.append(task.shard)
            yield task

    results = Scheduler(Told(lambda task: None, 2), numbered()).results()  # type: ignore[arg-type]
    next(results)
    assert len(taken) <= 3
