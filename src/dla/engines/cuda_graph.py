"""CUDA graphs: the kernels of a whole network are launched as one, which for a few photos takes most of the time.

A graph is of one part of a network and one shape of its input. The first batch of a shape runs kernel by kernel, so
that a single photo waits for no capture; the second is captured; the others are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

__all__ = ["MOST_GRAPHS", "CudaGraphs"]


MOST_GRAPHS = 4  # each holds memory of the GPU; further shapes run kernel by kernel

Compute = Callable[[Tensor], Tensor]


class CudaGraphs:
    """Runs a function of a batch on `device`, an NVIDIA GPU, by a graph from the second batch of a shape on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captured: dict[Hashable, _Graph | None] = {}  # None: seen once, or not to be captured
        self.lock, self.maker = Lock(), _Maker(device)

    def run(self, name: Hashable, compute: Compute, batch: Tensor) -> Tensor:
        """`compute(batch)`, a tensor of its own on the device; `name` and the batch's shape say which graph it is.

        Args:
            batch: in memory that the GPU reads by itself (pinned).
            compute: launches the same kernels for every batch of a shape. It is called with the batch on the device.
        """
        key = name, batch.shape
        with self.lock:  # a graph has one input and one output, whoever asks
            graph = self.captured.get(key)
            if graph is None and key in self.captured and self.maker.may():
                graph = self.captured[key] = self.maker.make(compute, batch)
            if graph is not None:
                return graph(batch)
            if self.maker.may():
                self.captured[key] = None
        return compute(batch.to(self.device, non_blocking=True))


class _Maker:
    """Captures graphs that share their memory: one at a time computes, so that what lies between may be shared."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.left = device, MOST_GRAPHS
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()

    def may(self) -> bool:
        return self.left > 0

    def make(self, compute: Compute, batch: Tensor) -> _Graph | None:
        """None where this cannot be captured: slower is not wrong."""
        self.left -= 1
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            try:
                return self._capture(compute, batch)
            except RuntimeError:  # a kernel that cannot be captured, or too little memory; nothing else may be captured
                self.left = 0
                return None
            finally:
                torch.cuda.set_stream(before)  # a capture that broke leaves its own

    def _capture(self, compute: Compute, batch: Tensor) -> _Graph:
        given, graph = batch.to(self.device), torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            compute(given)  # what libraries prepare in a stream at first cannot be captured
        torch.cuda.current_stream().wait_stream(self.stream)
        # other threads may go on asking for memory
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            result = compute(given)
        return _Graph(graph, given, result)


class _Graph:
    """What was captured, with the memory that it reads from and writes to."""

    def __init__(self, graph: torch.cuda.CUDAGraph, given: Tensor, result: Tensor) -> None:
        self.graph, self.given, self.result = graph, given, result

    def __call__(self, batch: Tensor) -> Tensor:
        self.given.copy_(batch, non_blocking=True)
        self.graph.replay()
        return self.result.clone()  # the next replay of any graph writes there
