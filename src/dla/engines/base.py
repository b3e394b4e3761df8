"""The interface that every engine implements."""

from __future__ import annotations

import gc
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

import numpy as np

from dla.models.registry import LOGITS, check_feature_node
from dla.types import Array

if TYPE_CHECKING:
    from dla.engines.graph import Network


T = TypeVar("T")


class PerProcess(Generic[T]):
    """A value that each process makes for itself: the threads of a runtime are gone in a forked child."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.make, self.lock = make, Lock()
        self.value: T | None = None
        _PER_PROCESS.add(self)

    def get(self) -> T:
        """Return this process's value."""
        with self.lock:
            if self.value is None:
                self.value = self.make()
            return self.value

    def forget(self) -> None:
        """Leave the parent's value alone for ever: destroying it would wait for its threads, and so for ever."""
        import ctypes  # here, because few processes are forked

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.value))
        self.lock, self.value = Lock(), None


_PER_PROCESS: WeakSet[PerProcess[Any]] = WeakSet()


def _forget_all() -> None:
    gc.freeze()  # what is garbage already is not taken apart in the child either
    for value in list(_PER_PROCESS):
        value.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


class Engine(ABC):
    """A network ready for inference. It normalizes the pixels itself, so that every engine takes the same input.

    `name` is the runtime, its device and any reduced precision, such as "PyTorch on cpu". `max_concurrent` is how
    many concurrent calls, each from its own thread, give the highest throughput.
    """

    name: str
    max_concurrent = 1

    def own_process(self) -> None:  # noqa: B027  # most have nothing to set up
        """Configure the whole process for this engine. The command line calls it; a library must not."""

    def probabilities(self, pixels_NHW3: Array) -> Array:
        """Return float32 probabilities (N, K), each row summing to 1, for uint8 photos of one size."""
        return self._run(None, pixels_NHW3)

    def features_at(self, at: str) -> Callable[[Array], Array]:
        """Return a function from uint8 photos (N, H, W, 3) to the float32 features (N, C[, H, W]) at a feature node.

        Raises:
            UnknownNameError: the network has no such node (`dla.models.nodes.truncate` documents the names).
        """
        self._check_node(at)
        return partial(self._run, at)

    def with_features(self) -> Engine:
        """Return an engine of this network that computes features: itself, or for an int8 model the one in fp32."""
        return self

    def classifier(self) -> tuple[Array, Array]:
        """Return the classifier's weight (K, C) and bias (K,), float32, of a network that classifies."""
        raise NotImplementedError

    @abstractmethod
    def _check_node(self, at: str) -> None:
        """Raise an UnknownNameError unless the network has this feature node."""

    @abstractmethod
    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        """Return the features at a node, or the probabilities if `at` is None."""


class NetworkEngine(Engine):
    """Base class of the engines that are built from a network's operations."""

    network: Network
    threads: int

    def classifier(self) -> tuple[Array, Array]:  # noqa: D102
        weight_KC11, bias_K = (self.network.state[f"fc.{part}"].astype(np.float32) for part in ("weight", "bias"))
        return weight_KC11[:, :, 0, 0], bias_K

    def _check_node(self, at: str) -> None:
        check_feature_node(at, self.network.graph.nodes)


def whole_network(engine: Engine, dense: bool) -> Callable[[Array], Array]:
    """Return a function that runs all of a network: to probabilities, or to the logits of a dense network."""
    return engine.features_at(LOGITS) if dense else engine.probabilities
