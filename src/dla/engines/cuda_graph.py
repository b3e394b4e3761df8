"""CUDA graphs: launch all kernels of a network at once. For small batches, launching takes most of the time.

A graph belongs to one part of a network and one input shape. The first batch of a shape runs kernel by kernel, so that
a single photo does not wait for a capture; the second is captured; later ones are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

MOST_GRAPHS = 4  # each holds GPU memory; further shapes run kernel by kernel

Compute = Callable[[Tensor], Tensor]


class CudaGraphs:
    """Run functions of a batch on `device`, an NVIDIA GPU, as CUDA graphs from the second batch of a shape on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captured: dict[Hashable, _Graph | None] = {}  # None: seen once, or cannot be captured
        self.lock, self.capturer = Lock(), _Capturer(device)

    def run(self, name: Hashable, compute: Compute, batch: Tensor) -> Tensor:
        """Return `compute(batch)`, a new tensor on the device.

        Args:
            name: identifies the graph, together with the batch's shape.
            compute: launches the same kernels for every batch of a shape. It is called with the batch on the device.
            batch: in pinned memory.
        """
        key = name, batch.shape
        with self.lock:  # a graph has one input and one output, which all threads share
            graph = self.captured.get(key)
            if graph is None and key in self.captured and self.capturer.can_capture():
                graph = self.captured[key] = self.capturer.capture(compute, batch)
            if graph is not None:
                return graph(batch)
            if self.capturer.can_capture():
                self.captured[key] = None
        return compute(batch.to(self.device, non_blocking=True))


class _Capturer:
    """Capture graphs that share a memory pool; only one computes at a time, so intermediate results may share it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.remaining = device, MOST_GRAPHS
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()

    def can_capture(self) -> bool:
        return self.remaining > 0

    def capture(self, compute: Compute, batch: Tensor) -> _Graph | None:
        """Return the graph, or None where it cannot be captured: then kernels are launched one by one."""
        self.remaining -= 1
        with torch.cuda.device(self.device):
            previous = torch.cuda.current_stream()
            try:
                return self._capture(compute, batch)
            except RuntimeError:  # a kernel that cannot be captured, or too little memory; nothing else may be captured
                self.remaining = 0
                return None
            finally:
                torch.cuda.set_stream(previous)  # a failed capture leaves its own stream current

    def _capture(self, compute: Compute, batch: Tensor) -> _Graph:
        static_input, graph = batch.to(self.device), torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            compute(static_input)  # a warm-up: what libraries initialize on a stream's first use cannot be captured
        torch.cuda.current_stream().wait_stream(self.stream)
        # other threads may still allocate memory
        with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
            result = compute(static_input)
        return _Graph(graph, static_input, result)


class _Graph:
    """A captured graph with its static input and output."""

    def __init__(self, graph: torch.cuda.CUDAGraph, static_input: Tensor, result: Tensor) -> None:
        self.graph, self.static_input, self.result = graph, static_input, result

    def __call__(self, batch: Tensor) -> Tensor:
        self.static_input.copy_(batch, non_blocking=True)
        self.graph.replay()
        return self.result.clone()  # the next replay of any graph overwrites it
