"""A run that is asked to end ends between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import NoReturn, Self

from dla.verbs.ranks import Ranks

__all__ = ["Stop"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
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

    def wanted(self) -> bool:
        """Whether any rank was asked to end; the ranks ask together, so that all of them stop at the same step."""
        self.noted = self.ranks.largest(self.noted)
        return self.noted > 0

    def leave(self) -> NoReturn:
        """End as the signal would have it: KeyboardInterrupt, or SystemExit with 143."""
        if self.noted == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self.noted)
