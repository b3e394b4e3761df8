"""The results of a validation, and their JSON (docs/formats.md)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dla.data.dataset import Split, Unreadable
from dla.metrics.classification import Comparison, Evaluation
from dla.options import Preset, TestTime

SCHEMA = "dla.validate/1"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The fitted temperature, and the log loss and calibration error of the same photos with it."""

    temperature: float
    log_loss: float
    calibration_error: float


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """One model's results on the photos of `split`, which leaves out `unreadable` ones.

    `model` is the name that was given, `origin` where its weights came from. `labels` are the readable class names in
    the order of the outputs. `temperature` is the one used for these results, `license` that of the weights.
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
    license: str = ""

    @property
    def top1(self) -> float:
        """The top-1 accuracy, 0 to 1."""
        return self.evaluation.top1

    @property
    def top5(self) -> float:
        """The top-5 accuracy, 0 to 1."""
        return self.evaluation.top5

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {"schema": SCHEMA, "data": self.data, **self.figures(), **_unreadable(self.unreadable)}

    def figures(self) -> dict[str, Any]:
        """Return the part of the JSON record that is about this model."""
        figures = self.evaluation.to_dict()
        classes = [c | {"label": label} for c, label in zip(figures["classes"], self.labels, strict=True)]
        calibrated = {"calibrated": asdict(self.calibrated)} if self.calibrated else {}
        settings = {key: getattr(self, key) for key in ("model", "origin", "sha256", "preset", "tta", "temperature")}
        return settings | figures | {"classes": classes} | calibrated


@dataclass(frozen=True, slots=True, eq=False)
class Validations:
    """Several models' results on the same photos; `comparisons` holds (a, b, a compared with b) for each pair."""

    models: tuple[Validation, ...]
    comparisons: tuple[tuple[str, str, Comparison], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON record."""
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
