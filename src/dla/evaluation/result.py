"""What a validation found, as frozen values, and their JSON (docs/formats.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dla.data.dataset import Split, Unreadable
from dla.metrics.classification import Comparison, Evaluation
from dla.options import Preset, TestTime

__all__ = ["SCHEMA", "Calibrated", "Validation", "Validations"]


SCHEMA = "dla.validate/1"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The temperature that was fitted and saved, and what the same photos' figures are with it."""

    temperature: float
    log_loss: float
    calibration_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """One model's figures on the photos of `split`; `unreadable` ones are in neither.

    `model` is what was asked for, `origin` what was read. `labels` are the classes' readable names in the order of the
    outputs. `temperature` is the one that the figures are with.
    """

    model: str
    origin: str
    sha256: str
    data: str
    preset: Preset
    tta: TestTime
    temperature: float
    labels: tuple[str, ...]
    evaluation: Evaluation
    split: Split
    unreadable: tuple[Unreadable, ...] = ()
    calibrated: Calibrated | None = None
    notes: tuple[str, ...] = ()

    @property
    def top1(self) -> float:
        """The share of photos whose first class is right, 0 to 1."""
        return self.evaluation.top1

    @property
    def top5(self) -> float:
        """The share of photos whose class is among the first five, 0 to 1."""
        return self.evaluation.top5

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return {"schema": SCHEMA, "data": self.data, **self.figures(), **_unreadable(self.unreadable)}

    def figures(self) -> dict[str, Any]:
        """What of the record is this model's."""
        figures = self.evaluation.to_dict()
        classes = [c | {"label": label} for c, label in zip(figures["classes"], self.labels, strict=True)]
        calibrated = {"calibrated": asdict(self.calibrated)} if self.calibrated else {}
        settings = {key: getattr(self, key) for key in ("model", "origin", "sha256", "preset", "tta", "temperature")}
        return settings | figures | {"classes": classes} | calibrated


@dataclass(frozen=True, slots=True, eq=False)
class Validations:
    """Several models' figures on the same photos; `comparisons` of each pair: a, b, how much better a is."""

    models: tuple[Validation, ...]
    comparisons: tuple[tuple[str, str, Comparison], ...]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        first = self.models[0]
        return {
            "schema": SCHEMA,
            "data": first.data,
            "models": [m.figures() for m in self.models],
            "comparisons": [{"model_a": a, "model_b": b, **c.to_dict()} for a, b, c in self.comparisons],
            **_unreadable(first.unreadable),
        }


def _unreadable(unreadable: tuple[Unreadable, ...]) -> dict[str, Any]:
    return {"unreadable": [{"path": u.name, "code": u.code, "message": u.message} for u in unreadable]}
