"""The processes of one run: one by itself, or several that `torchrun` started (docs/many-machines.md).

    with joined(device) as ranks:
        rows = ranks.shard(rows)
        ...
        if ranks.is_main:
            print(...)

Only the main rank prints and writes. What every rank must know and only the main one can find out goes through
`ranks.broadcast_object`.
"""

from __future__ import annotations

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

__all__ = ["Ranks", "StopSignal", "process_group"]


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
        """What the variables of torchrun say: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE; without them, one process
        by itself.

        Raises:
            UsageError: they are no numbers, or contradict each other.
        """
        world = os.environ.get("WORLD_SIZE") or "1"
        usual = {"RANK": "0", "WORLD_SIZE": world, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": world}
        names, values = list(usual), [os.environ.get(name) or default for name, default in usual.items()]
        for name, value in zip(names, values, strict=True):
            if not value.isdecimal():
                raise UsageError(f"the variable {name} is {value}: a number from 0 on. torchrun sets it")
        return cls(*map(int, values))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device itself, or the GPU that is this rank's own."""
        shared = device.type == "cuda" and device.index is None and self.world > 1
        return torch.device("cuda", self.local_rank) if shared else device

    def shard(self, rows: Rows) -> Rows:
        """This rank's part: every row is in exactly one part, and their sizes differ by one at most."""
        return rows[self.rank :: self.world]  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world > 1:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, on each of them; the tensor is on the device that they compute on."""
        if self.world == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def mean(self, *numbers: float) -> list[float]:
        """The means over the ranks, on each of them."""
        if self.world == 1:
            return list(numbers)
        return list(self.sum(torch.tensor(numbers, dtype=torch.float64, device=_place())).div(self.world).tolist())

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers, on each of them."""
        if self.world == 1:
            return number
        found = torch.tensor([number], device=_place())
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """What `make` returns on the main rank, on each of them; it is called there alone."""
        if self.world == 1:
            return make()
        box = [make() if self.is_main else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Give every rank the main one's values, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def gather_rows(self, array_n: Array, rows_n: Array, total: int) -> Array:
        """An array (total, ...) in which row `rows_n[i]` is `array_n[i]`, from all ranks together, on each of them."""
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
    """Connect the ranks of this run, which compute on `device`: by NCCL between GPUs ("cuda", "auto"), else by gloo.

    An error on one rank ends them all: the first to fail raises it, the others exit without a word.
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
                             "a GPU: torchrun --nproc-per-node")  # fmt: skip
        torch.cuda.set_device(ranks.local_rank)
    try:
        shared, rank, world = next(rendezvous("env://"))
    except ValueError as error:  # a variable is missing
        raise UsageError(f"WORLD_SIZE is {ranks.world}, but the processes cannot meet ({error}). Start them by "
                         "torchrun, or unset WORLD_SIZE") from error  # fmt: skip
    store = PrefixStore(_this_start(shared, rank, world), shared)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=world)
        yield ranks
    except (DlaError, RuntimeError) as error:
        told = error if isinstance(error, DlaError) else _lost(error)
        if told is None:
            raise
        if _is_first(store):
            raise told from error
        raise SystemExit(told.exit_code) from error
    dist.destroy_process_group()


def _this_start(store: Any, rank: int, world: int) -> str:
    """A word that only the processes of this start share.

    When torchrun starts the processes again it keeps the store, with all that those before them wrote; who read their
    addresses there would wait for the dead. So the main rank says a new word, and takes in who says one back.
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
        start = store.get("dla/start").decode()  # may be that of the dead, who cannot have seen this process
        store.set(f"dla/{start}/here/{rank}", mine)
        seen = f"dla/{start}/seen/{rank}"
        if store.check([seen]) and store.get(seen).decode() == mine:
            return str(start)
        time.sleep(0.02)


def _wait(store: Any, key: str) -> None:
    while not store.check([key]):  # and not store.wait(), within which no signal is heard
        time.sleep(0.02)


def _place() -> torch.device | None:
    """Where a tensor must be for the ranks to exchange it."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else None


def _lost(error: RuntimeError) -> DlaError | None:
    """The connection to another rank broke: what to say of it. None for an error of another kind."""
    text = str(error)
    if not isinstance(error, dist.DistError) and not any(word in text for word in ("gloo", "Gloo", "NCCL")):
        return None
    return DlaError(
        "another process of this run ended or cannot be reached, so all end. The same command goes on from the newest "
        "checkpoint"
    )


def _is_first(store: Any) -> bool:
    try:
        return bool(store.add("dla/failed", 1) == 1)
    except RuntimeError:  # where the main rank keeps the store, it goes with it
        return True


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Within it the first SIGINT or SIGTERM is only noted; a second one acts at once, as it does outside."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.noted = ranks, 0
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
        self.noted = number
        self.__exit__()

    def stop_requested(self) -> bool:
        """Whether any rank was asked to end; the ranks ask together, so that all of them stop at the same step."""
        self.noted = self.ranks.max(self.noted)
        return self.noted > 0

    def exit(self) -> NoReturn:
        """End as the signal would have it: KeyboardInterrupt, or SystemExit with 143."""
        if self.noted == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.noted)
