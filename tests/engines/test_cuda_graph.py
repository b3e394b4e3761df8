"""Which batches CUDA graphs are captured for, and what happens where none can be; the graphs themselves: tests/gpu."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from dla.engines.cuda_graph import MOST_GRAPHS, CudaGraphs


class Stream:
    """A stand-in: what runs in it runs at once."""

    def wait_stream(self, other: Stream) -> None:
        pass


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is called while a graph is captured; nothing is: a replay changes no memory."""
    began: list[str] = []

    @contextmanager
    def nothing(*args: object) -> Iterator[None]:
        yield

    @contextmanager
    def capture(*args: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        began.append("capture")
        yield

    class Graph:
        def replay(self) -> None:
            began.append("replay")

    for name, value in {
        "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph, "graph_pool_handle": tuple, "device": nothing,
        "stream": nothing, "graph": capture, "set_stream": lambda stream: began.append("stream set back"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return began


def double(batch: Tensor) -> Tensor:
    return 2 * batch


def test_the_second_batch_of_a_shape_is_captured_and_the_next_are_replayed(captures: list[str]) -> None:
    graphs, batch = CudaGraphs(torch.device("cpu")), torch.ones(2, 3)
    torch.testing.assert_close(graphs.run("a", double, batch), 2 * batch)
    assert captures == []
    torch.testing.assert_close(graphs.run("a", double, batch), 2 * batch)
    assert captures == ["capture", "stream set back", "replay"]
    first, second = (graphs.run("a", double, batch) for _ in range(2))
    assert captures[3:] == ["replay", "replay"]
    assert first.data_ptr() != second.data_ptr()
    graphs.run("b", double, batch), graphs.run("a", double, batch[:1])
    assert captures.count("capture") == 1


def test_few_shapes_are_captured_and_the_others_run_as_they_are(captures: list[str]) -> None:
    graphs = CudaGraphs(torch.device("cpu"))
    for n in range(1, MOST_GRAPHS + 5):
        for _ in range(3):
            torch.testing.assert_close(graphs.run("a", double, torch.ones(n)), 2 * torch.ones(n))
    assert captures.count("capture") == MOST_GRAPHS
    assert len(graphs.captured) == MOST_GRAPHS


def test_what_cannot_be_captured_runs_as_it_is_and_nothing_else_is_tried(captures: list[str]) -> None:
    calls: list[int] = []

    def breaks(batch: Tensor) -> Tensor:
        calls.append(len(batch))
        if "capture" in captures and captures[-1] == "capture":
            raise torch.OutOfMemoryError("no memory for a graph")
        return 2 * batch

    graphs = CudaGraphs(torch.device("cpu"))
    for n in (2, 2, 2, 3, 3, 3):
        torch.testing.assert_close(graphs.run("a", breaks, torch.ones(n)), 2 * torch.ones(n))
    assert captures == ["capture", "stream set back"]
    assert calls == [2, 2, 2, 2, 2, 3, 3, 3]
