"""How deep the work lies: functions of ours on the stack between `main` and what computes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dla
from dla.cli import main
from dla.engines.openvino import OpenvinoEngine
from support import flat_photos
from support.photos import COFFEE
from support.tiny import in_the_table

ROOT = str(Path(dla.__file__).parent)


def frames() -> list[str]:
    """The functions of dla that are running in this thread, the outermost first; `main` is one of them."""
    found, frame = [], sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        if frame.f_code.co_filename.startswith(ROOT):
            found.append(frame.f_code.co_qualname)
    return found[::-1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_from_main_to_the_engine(workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With workers a batch is answered in a thread of its own, whose stack is shorter."""
    seen: list[list[str]] = []
    run = OpenvinoEngine._run

    def watched(engine: OpenvinoEngine, at: str | None, pixels_NHW3: np.ndarray[Any, Any]) -> Any:
        seen.append(frames())
        return run(engine, at, pixels_NHW3)

    monkeypatch.setattr(OpenvinoEngine, "_run", watched)
    words = ["predict", str(COFFEE), "--engine", "openvino", "--workers", workers, "-q"]
    assert main(words) == 0
    (stack,) = seen
    assert workers == "2" or stack[0] == "main"
    assert len(stack) + 1 <= 7, stack  # and the engine's own


def test_from_main_to_the_step_of_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    step = torch.optim.SGD.step

    def watched(optimizer: torch.optim.SGD, *given: Any) -> Any:
        seen.append(frames())
        return step(optimizer, *given)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    data = flat_photos.write(tmp_path / "data", train=4, val=2)
    small = ["--recipe", flat_photos.PLAIN, "--model", "tiny", "--batch-size", "8", "--epochs", "1",
             "--input.val-size", "32", "--workers", "0"]  # fmt: skip
    with in_the_table():
        assert main(["train", str(data), *small, "--output", str(tmp_path / "run"), "-q"]) == 0
    assert seen
    assert seen[0][0] == "main"
    assert len(seen[0]) <= 6, seen[0]
