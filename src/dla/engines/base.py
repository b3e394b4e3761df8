"""What every engine offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from dla.models.registry import check_feature_node
from dla.types import Array

if TYPE_CHECKING:
    from dla.engines.graph import Network

__all__ = ["Engine", "NetworkEngine"]


class Engine(Protocol):
    """A network ready to answer. It normalises the pixels itself, so that every engine is given the same ones."""

    @property
    def name(self) -> str:
        """What runs, and on what: "PyTorch on cpu"."""
        ...

    @property
    def max_concurrent(self) -> int:
        """How many calls at the same time, from threads, keep it busiest."""
        ...

    def own_process(self) -> None:
        """Set this process up for the engine alone, as the command line does; a library's process is its caller's."""
        ...

    def probabilities(self, pixels_NHW3: Array) -> Array:
        """uint8 photos of one size -> float32 probabilities (N, K), each row summing to 1."""
        ...

    def features_at(self, at: str) -> Callable[[Array], Array]:
        """What turns uint8 photos (N, H, W, 3) into the float32 features at a place of the network, (N, C[, H, W]).

        Raises:
            UnknownNameError: the network has no such place (`dla.models.nodes.truncate` says which there are).
        """
        ...


class NetworkEngine(ABC):
    """What the engines share that are made from a network's operations; `_run` is their own."""

    network: Network
    max_concurrent = 1

    def own_process(self) -> None:  # noqa: B027  # most have nothing to set up
        """Nothing to set up."""

    def probabilities(self, pixels_NHW3: Array) -> Array:
        """uint8 photos of one size -> float32 probabilities (N, K)."""
        return self._run(None, pixels_NHW3)

    def features_at(self, at: str) -> Callable[[Array], Array]:
        """What turns uint8 photos of one size into float32 features (N, C[, H, W]).

        Raises:
            UnknownNameError: the network has no such place.
        """
        check_feature_node(at, self.network.graph.nodes)
        return partial(self._run, at)

    @abstractmethod
    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        """The features at a place, or, without one, the probabilities."""
