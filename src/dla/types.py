"""Types and constants that every package may use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from typing import Any

    import numpy as np

__all__ = ["DEFAULT_MODEL", "NO_PROGRESS", "Array", "ClassName", "Progress"]


Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
DEFAULT_MODEL = "shipped:tiny200"  # what classifies where no network is named

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Progress(Protocol):
    """Told by every function that takes long how far it is. Threads may call it.

    There is one piece of work at a time: `start` ends the one before it.
    """

    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        """Begin a piece of work, such as "validating", of `total` units; None where their number is not known."""

    def advance(self, count: int = 1) -> None:
        """So many more units are done."""

    def note(self, words: str) -> None:
        """Where the work stands, in words that take the place of its name: "epoch 3/12  loss 0.41"."""

    def log(self, sentence: str) -> None:
        """Tell people something that stays when the work is over."""


class _NoProgress:
    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        pass

    def advance(self, count: int = 1) -> None:
        pass

    def note(self, words: str) -> None:
        pass

    def log(self, sentence: str) -> None:
        pass


NO_PROGRESS: Progress = _NoProgress()


@dataclass(frozen=True, slots=True)
class ClassName:
    """One class: its id (a WordNet synset, or a folder's name), a short unique name, all its names."""

    class_id: str
    label: str
    description: str
