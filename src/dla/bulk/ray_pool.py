"""Workers of a Ray cluster: one actor for each place that it has. Ray gets shard numbers, and no pixels.

Ray sends usage reports unless told not to before it is imported. A Ray that is started here listens on 127.0.0.1 alone,
without its dashboard, and asks for a token.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from dla.bulk.local_pool import portable
from dla.bulk.schedule import WorkerDeath
from dla.bulk.shard import BulkJob, ShardResult, ShardTask, ShardWorker
from dla.errors import UnavailableError, UsageError, import_optional, pip_line

_SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_USAGE_DISABLED": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # a cluster that others started with reports on sends its last one to nobody
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
# Without clusters, as on Windows and macOS, Ray takes the loopback address for its own, and listens on nothing else.
_PAUSE_S = 0.2
MOST_STARTS = 100  # in a row, most of them while Ray has not yet noticed that the actor is gone
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


def import_ray(*, alone: bool) -> Any:
    """Import Ray without usage reports and return it; `alone`: it will be started here.

    Raises:
        UsageError: it was imported in another way.
        UnavailableError: it is not installed.
    """
    if sys.modules.get("ray") is None:
        for name, value in _SILENT.items():
            os.environ.setdefault(name, value)
        if alone:
            os.environ.update(_ALONE)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    elif os.environ.get("RAY_USAGE_STATS_ENABLED") != "0":
        raise UsageError("Ray was imported with its usage reports on. Set RAY_USAGE_STATS_ENABLED=0 before")
    return import_optional("ray", f"--runner ray needs Ray: {pip_line('ray')}")


@contextmanager
def open_ray(job: BulkJob, address: str | None, shards: int) -> Iterator[RayPool]:
    """Connect to a cluster, or start Ray here, and yield a pool of its workers.

    Raises:
        UnavailableError: there is no such cluster, or it cannot be reached; Ray is not installed.
    """
    threads = job.load_options["threads"]
    ray = import_ray(alone=address is None)
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if ray.is_initialized():
        yield from _opened(ray, job, threads, shards)
        return
    try:
        with _own_signals():
            if address is None:
                # "local": without it, Ray connects to a cluster that somebody else has started here
                ray.init(address="local", include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
            else:
                ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        where = "Ray could not be started here" if address is None else f"the Ray cluster {address} cannot be reached"
        raise UnavailableError(f"{where} ({str(error).splitlines()[0][:160]})") from error
    try:
        yield from _opened(ray, job, threads, shards)
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our handler of SIGTERM: Ray installs its own, with another exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _opened(ray: Any, job: BulkJob, threads: int, shards: int) -> Iterator[RayPool]:
    wants = {"CPU": threads}
    if job.run is not None and job.run.settings["device"] != "cpu":
        wants["GPU"] = 1
    found = ray.cluster_resources()
    for kind, each in wants.items():
        if found.get(kind, 0) < each:
            raise UsageError(f"the Ray cluster has {found.get(kind, 0):.0f} {kind}s, and a process takes {each}. Give "
                             "fewer --threads, or --device cpu")  # fmt: skip
    pool = RayPool(ray, job, min(shards, *(int(found[kind] // each) for kind, each in wants.items())), wants)
    try:
        yield pool
    finally:
        pool.close()


class _Actor:
    """A worker in a process of Ray. It loads the network after its start, so that it can report an error."""

    def __init__(self, job: BulkJob) -> None:
        self.job = job
        self.worker: ShardWorker | None = None

    def place(self) -> str | Exception:
        """Load the network, and return the node that this process is on; or the error."""
        import ray

        try:
            self.worker = ShardWorker(self.job)
        except Exception as error:
            return portable(error)
        return str(ray.get_runtime_context().get_node_id())

    def make(self, task: ShardTask) -> ShardResult | Exception:
        """Answer a task; return its error, if it has one."""
        assert self.worker is not None
        try:
            return self.worker(task)
        except MemoryError:
            os._exit(1)  # as if the system had killed it
        except Exception as error:
            return portable(error)


@dataclass
class _Placed:
    """An actor and its node. It has a task, or is idle, or is being started: then it may have died over a task."""

    actor: Any
    node: str = ""
    task: ShardTask | None = None
    died_over: ShardTask | None = None
    failed_starts: int = 0


class RayPool:
    """Actors that make shards, spread over the nodes of a cluster. Ray starts dead ones again, where there is room."""

    def __init__(self, ray: Any, job: BulkJob, count: int, wants: Mapping[str, int]) -> None:
        self.ray = ray
        options = {"max_restarts": -1, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        make = ray.remote(num_cpus=wants["CPU"], num_gpus=wants.get("GPU", 0), **options)(_Actor)
        self.actors = [_Placed(make.remote(job)) for _ in range(count)]
        self.idle: list[_Placed] = []
        self.queue = deque[ShardTask]()
        self.pending: dict[Any, _Placed] = {}
        for placed in self.actors:
            self._start(placed)

    def free(self) -> int:
        """Return how many more tasks it takes now: as many as there are actors without one."""
        return sum(placed.task is None for placed in self.actors) - len(self.queue)

    def submit(self, task: ShardTask) -> None:
        """Give a task to the next idle actor."""
        self.queue.append(task)

    def wait(self) -> list[ShardResult | WorkerDeath]:
        """Return the results and deaths since."""
        events: list[ShardResult | WorkerDeath] = []
        while not events:
            while self.queue and self.idle:
                placed = self.idle.pop()
                placed.task = self.queue.popleft()
                self.pending[placed.actor.make.remote(placed.task)] = placed
            ready, _ = self.ray.wait(list(self.pending), timeout=1.0)
            for reference in ready:
                events += self._finished(reference, self.pending.pop(reference))
            events += self._lost()
        return events

    def close(self) -> None:
        """End the actors."""
        for placed in self.actors:
            with suppress(Exception):
                self.ray.kill(placed.actor)

    def _start(self, placed: _Placed) -> None:
        self.pending[placed.actor.place.remote()] = placed

    def _finished(self, reference: Any, placed: _Placed) -> list[ShardResult | WorkerDeath]:
        try:
            answer = self.ray.get(reference)
        except self.ray.exceptions.RayActorError as error:
            self._died(placed, error)
            return []
        if isinstance(answer, Exception):
            raise answer
        self.idle.append(placed)
        if isinstance(answer, ShardResult):
            placed.task = None
            return [replace(answer, worker=placed.node)]
        before, placed.node, placed.failed_starts = placed.node, answer, 0
        death = self._death(placed, before in self._nodes())
        return [] if death is None else [death]

    def _died(self, placed: _Placed, error: Exception) -> None:
        """Remember over what an actor died until it is started again: then it is known whether its node lives."""
        if getattr(error, "_actor_init_failed", False):
            raise UnavailableError(f"Ray cannot start a worker: {str(error).splitlines()[-1][:200]}") from error
        if placed.task is None:
            placed.failed_starts += 1
            if placed.failed_starts > MOST_STARTS:
                raise UnavailableError(
                    "the workers of Ray die while they load the network. Look at their logs"
                ) from error
            time.sleep(_PAUSE_S)  # it may not be up yet
        else:
            placed.task, placed.died_over = None, placed.task
        self._start(placed)

    def _lost(self) -> list[ShardResult | WorkerDeath]:
        """Return the deaths of actors that cannot be started again because their node is gone."""
        unknown = [placed for placed in self.actors if placed.died_over is not None]
        nodes = self._nodes() if unknown else set()
        deaths = (self._death(placed, False) for placed in unknown if placed.node not in nodes)
        return [death for death in deaths if death is not None]

    def _death(self, placed: _Placed, by_itself: bool) -> WorkerDeath | None:
        task, placed.died_over = placed.died_over, None
        how = "a worker of Ray" if by_itself else "its node is lost"
        return None if task is None else WorkerDeath(task, by_itself, how)

    def _nodes(self) -> set[str]:
        return {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
