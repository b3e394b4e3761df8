"""A process that has answered is forked: the child answers too, with each engine, and never waits for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest

import dla
from dla.errors import UsageError
from support.small_models import SIDE, write_small
from support.warm import WARM

pytestmark = pytest.mark.slow
SECONDS = 60


def in_child(task: Callable[[], bool]) -> bool:
    """What a task returns in a forked child, which ends as multiprocessing's do."""
    if not (child := os.fork()):
        try:
            right = task()
        finally:
            os._exit(0 if right else 1)
    for _ in range(10 * SECONDS):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status == 0
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the child has no answer after {SECONDS} s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_small(tmp_path_factory.mktemp("forks") / "m", list("abc")))


def answers_in_children(folder: str, engine: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    classifier = dla.load(folder, engine=engine, threads=2)
    one, many = classifier.probabilities(pixels[:1]), classifier.probabilities(pixels)

    def same() -> bool:
        again = classifier.probabilities(pixels[:1]), classifier.probabilities(pixels)
        return np.allclose(again[0], one, atol=1e-6) and np.allclose(again[1], many, atol=1e-6)

    def another() -> bool:
        return np.allclose(dla.load(folder, engine=engine).probabilities(pixels), many, atol=1e-6)

    assert in_child(same)
    assert in_child(another)
    assert in_child(lambda: in_child(same))  # a child's child
    np.testing.assert_array_equal(classifier.probabilities(pixels), many)


@pytest.mark.parametrize("engine", ["openvino", "onnx", "torch"])
def test_a_forked_child_answers_as_its_parent(folder: str, engine: str) -> None:
    """The parent is a process of its own: one with the threads of other tests has more that a child lacks."""
    parent = WARM.Process(target=answers_in_children, args=(folder, engine))
    parent.start()
    parent.join()
    assert parent.exitcode == 0


def test_a_gpu_is_not_for_a_forked_child(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from dla.engines import torch as engine

    classifier = dla.load(folder, engine="torch", device="cpu")
    monkeypatch.setattr(engine, "_forked", True)
    monkeypatch.setattr(classifier.engine, "device", engine.torch.device("cuda"))
    with pytest.raises(UsageError, match="a process that was forked cannot use the device cuda"):
        classifier.probabilities(np.zeros((1, SIDE, SIDE, 3), np.uint8))
