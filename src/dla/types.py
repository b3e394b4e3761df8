"""Types and constants shared by all packages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
DEFAULT_MODEL = "shipped:tiny200"  # used where no model is named
DEFAULT_SEGMENTER, DEFAULT_EDGE_DETECTOR = "shipped:camvid", "shipped:bsds"  # by dla segment and dla edges

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Progress:
    """Receives the progress of long-running functions, from any thread, and ignores it; subclasses show it.

    One task runs at a time: `start` ends the one before it.
    """

    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        """Start a task, such as "validating", of `total` units; None if their number is unknown."""

    def advance(self, count: int = 1) -> None:
        """Report that `count` more units are done."""

    def note(self, words: str) -> None:
        """Replace the name of the task by its state, such as "epoch 3/12  loss 0.41"."""

    def log(self, sentence: str) -> None:
        """Show a sentence that stays visible after the task has ended."""


NO_PROGRESS = Progress()


@dataclass(frozen=True, slots=True)
class ClassName:
    """One class: its id (a WordNet synset, or a folder's name), a short unique name, all its names."""

    class_id: str
    label: str
    description: str
