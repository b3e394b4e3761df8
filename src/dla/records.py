"""What goes in and out, as frozen values, and their JSON. A schema's number changes when its meaning does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Class", "InputError", "Prediction"]

PREDICT_SCHEMA = "dla.predict/1"


@dataclass(frozen=True, slots=True)
class Class:
    """One class that a photo may show. `probability` is from 0 to 1; `index` is the network's output."""

    rank: int
    index: int
    class_id: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class InputError:
    """Why an input has no answer. `code` is one of docs/errors.md's words, `message` is for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one input: classes by falling probability, or the error that took their place.

    `path` is the input as it was given, or a name such as "input 3" for one that has no path. `truncated` says
    that the file ended early and only the part that is there was classified.
    """

    path: str
    classes: tuple[Class, ...] = ()
    error: InputError | None = None
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        record: dict[str, Any] = {"schema": PREDICT_SCHEMA, "path": self.path}
        if self.error is not None:
            return record | {"error": asdict(self.error)}
        if self.truncated:
            record["truncated"] = True
        return record | {"predictions": [asdict(c) for c in self.classes]}
