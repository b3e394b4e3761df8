"""The processes of one run: one by itself, or several started by `torchrun` (docs/many-machines.md).

    with process_group(device) as ranks:
        rows = ranks.shard(rows)
        ...
        if ranks.is_main:
            print(...)

Only the main rank prints and writes. What only the main rank can find out reaches the others by
`ranks.broadcast_object`.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from dla.errors import DlaError, UsageError
from dla.types import Array

Rows = TypeVar("Rows", bound="Sequence[Any] | Array")
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`, and number `local_rank` of the `local_world` on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.local_rank < self.world and self.local_world > 0):
            raise UsageError(
                f"RANK is {self.rank}, LOCAL_RANK {self.local_rank}, WORLD_SIZE {self.world}: ranks count from 0 to "
                "below the world's size. torchrun sets all three"
            )

    @classmethod
    def from_env(cls) -> Ranks:
        """Read torchrun's variables RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; unset, a single process.

        Raises:
            UsageError: they are not numbers, or contradict each other.
        """
        world = os.environ.get("WORLD_SIZE") or "1"
        usual = {"RANK": "0", "WORLD_SIZE": world, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": world}
        names, values = list(usual), [os.environ.get(name) or default for name, default in usual.items()]
        for name, value in zip(names, values, strict=True):
            if not value.isdecimal():
                raise UsageError(f"the variable {name} is {value}, but must be a whole number from 0. torchrun sets it")
        return cls(*map(int, values))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's own GPU for "cuda" with several ranks; other devices unchanged."""
        shared = device.type == "cuda" and device.index is None and self.world > 1
        return torch.device("cuda", self.local_rank) if shared else device

    def shard(self, rows: Rows) -> Rows:
        """Return this rank's shard of the rows: disjoint, complete, and of equal size up to one row."""
        return rows[self.rank :: self.world]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.world > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on each of them. The tensor is on the device of the backend."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def mean(self, *numbers: float) -> list[float]:
        """Return the mean of each number over all ranks, on each of them."""
        if self.world == 1:
            return list(numbers)
        return list(
            self.sum(torch.tensor(numbers, dtype=torch.float64, device=_backend_device())).div(self.world).tolist()
        )

    def max(self, number: int) -> int:
        """Return the maximum over all ranks, on each of them."""
        if self.world == 1:
            return number
        largest = torch.tensor([number], device=_backend_device())
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Call `make` on the main rank only, and return its result on every rank."""
        if self.world == 1:
            return make()
        box = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the tensors of every rank with those of the main rank, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather_rows(self, array_n: Array, rows_n: Array, total: int) -> Array:
        """Return, on each rank, the array (total, ...) whose row `rows_n[i]` is `array_n[i]`, gathered from all ranks.

        Raises:
            ValueError: the rows of all ranks are not 0 to total - 1, each once.
        """
        parts = [(array, rows) for array, rows in self._gathered((array_n, rows_n)) if len(rows)]
        together = np.concatenate([rows for _, rows in parts] or [rows_n])
        if total == 0 or not np.array_equal(np.sort(together), np.arange(total)):
            raise ValueError(f"the ranks have {len(together)} rows, which are not 0 to {total - 1}, each once")
        gathered = np.empty((total, *parts[0][0].shape[1:]), parts[0][0].dtype)
        for array, rows in parts:
            gathered[rows] = array
        return gathered

    def _gathered(self, item: T) -> list[T]:
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items


@contextmanager
def process_group(device: str = "cpu") -> Iterator[Ranks]:
    """Connect the ranks of this run: by NCCL if they compute on GPUs (`device` "cuda" or "auto"), else by gloo.

    An error on one rank ends them all: the first to fail raises it, the others exit silently.

    Raises:
        UsageError: the ranks cannot connect, or there are fewer GPUs than ranks.
        DlaError: another rank failed or was lost.
    """
    ranks = Ranks.from_env()
    if ranks.world == 1 or dist.is_initialized():
        yield ranks
        return
    backend = "gloo"
    if device.startswith("cuda") or (device == "auto" and torch.cuda.is_available()):
        backend = "nccl"
        if ranks.local_rank >= (count := torch.cuda.device_count()):
            raise UsageError(f"LOCAL_RANK is {ranks.local_rank}, and this machine has {count} GPUs. Start one process "
                             "per GPU: torchrun --nproc-per-node")  # fmt: skip
        torch.cuda.set_device(ranks.local_rank)
    try:
        shared, rank, world = next(rendezvous("env://"))
    except ValueError as error:  # a variable is missing
        raise UsageError(f"WORLD_SIZE is {ranks.world}, but the processes cannot connect ({error}). Start them by "
                         "torchrun, or unset WORLD_SIZE") from error  # fmt: skip
    store = PrefixStore(_launch_id(shared, rank, world), shared)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        yield ranks
    except (DlaError, RuntimeError) as error:
        reported = error if isinstance(error, DlaError) else _lost_connection(error)
        if reported is None:
            raise
        if _is_first(store):
            raise reported from error
        raise SystemExit(reported.exit_code) from error
    dist.destroy_process_group()


def _launch_id(store: Any, rank: int, world: int) -> str:
    """Agree on an id that only the processes of this launch share.

    When torchrun restarts the processes it keeps the store with all that the earlier ones wrote, and a process that
    read their addresses there would wait for dead processes. So the main rank publishes a new id, and acknowledges each
    process that answers to it.
    """
    mine = uuid.uuid4().hex
    if rank == 0:
        store.set("dla/start", mine)
        for other in range(1, world):
            _wait(store, here := f"dla/{mine}/here/{other}")
            store.set(f"dla/{mine}/seen/{other}", store.get(here))
        return mine
    while True:
        _wait(store, "dla/start")
        start = store.get(
            "dla/start"
        ).decode()  # may be of an earlier launch, which cannot have acknowledged this process
        store.set(f"dla/{start}/here/{rank}", mine)
        seen = f"dla/{start}/seen/{rank}"
        if store.check([seen]) and store.get(seen).decode() == mine:
            return str(start)
        time.sleep(0.02)


def _wait(store: Any, key: str) -> None:
    while not store.check([key]):  # not store.wait(), which blocks signal handlers
        time.sleep(0.02)


def _backend_device() -> torch.device | None:
    """Return the device on which the backend exchanges tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None


def _lost_connection(error: RuntimeError) -> DlaError | None:
    """Return the error to report if the connection to another rank broke; None for other errors."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "Gloo", "NCCL")):
        return None
    return DlaError(
        "another process of this run ended or cannot be reached, so all processes end. Run the same command again to "
        "continue from the newest checkpoint"
    )


def _is_first(store: Any) -> bool:
    try:
        return bool(store.add("dla/failed", 1) == 1)
    except RuntimeError:  # the store ends with the main rank, which may host it
        return True


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Context in which the first SIGINT or SIGTERM only requests a stop; a second one acts as usual."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.received, self.received_at = ranks, 0, math.inf
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received, self.received_at = number, time.monotonic()
        self.__exit__()

    def seconds_ago(self) -> float:
        """Return how long ago this rank received a signal; -inf if it received none."""
        return time.monotonic() - self.received_at

    def stop_requested(self) -> bool:
        """Return whether any rank received a signal. All ranks must call it together, and so stop at the same step."""
        self.received = self.ranks.max(self.received)
        return self.received > 0

    def exit(self) -> NoReturn:
        """Raise what the signal stands for: KeyboardInterrupt, or SystemExit with 143."""
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.received)
