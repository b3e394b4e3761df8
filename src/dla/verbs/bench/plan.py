"""What a benchmark is to measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from dla.engines.choose import check_engine, installed
from dla.engines.machine import Precision
from dla.errors import UnknownNameError, UsageError
from dla.verbs.bench.rival import TIMM, check_timm

__all__ = ["AGAINST", "ALL", "LEAST_ROUNDS", "Plan"]

ALL = "all"
AGAINST = (TIMM,)
LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """Every network with every engine, precision and batch. The fields are `bench`'s arguments.

    Raises:
        UsageError, UnavailableError: a value that cannot be, or what is not installed.
    """

    models: tuple[str, ...]
    engine: str
    precision: str
    batches: tuple[int, ...]
    against: str | None
    threads: int | None
    rounds: int

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("nothing to measure: name a network, as in: dla bench dla34")
        if self.engine != ALL:
            check_engine(self.engine)
        precisions = (ALL, *get_args(Precision))
        if self.precision not in precisions:
            raise UnknownNameError("precision", self.precision, precisions, see=", ".join(precisions))
        if self.against is not None:
            if self.against not in AGAINST:
                raise UsageError(f"against is {self.against!r}. Allowed: {', '.join(AGAINST)}")
            check_timm()
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch is {','.join(map(str, self.batches)) or 'empty'}: whole numbers from 1, as in 1,8")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}: at least 1")
        if self.rounds < LEAST_ROUNDS:
            raise UsageError(f"rounds is {self.rounds}: at least {LEAST_ROUNDS}, of which the median is taken")

    @property
    def arms(self) -> tuple[tuple[str, str], ...]:
        """Engine and precision of each row with one network and batch; the others are compared with the first."""
        engines = installed() if self.engine == ALL else (self.engine,)
        precisions = get_args(Precision) if self.precision == ALL else (self.precision,)
        first = () if self.against is None else ((self.against, "fp32"),)
        return first + tuple((engine, precision) for precision in precisions for engine in engines)
