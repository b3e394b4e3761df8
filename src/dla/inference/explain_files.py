"""Write heat maps into a folder, and explanations as a table, JSON or CSV."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dla.inference.classifier import output_name
from dla.inference.explain import Explanation
from dla.inference.result_files import RecordWriter, class_lines
from dla.storage.files import write_files


@dataclass(frozen=True)
class HeatMapFiles:
    """Writes `<name>.explain.png`, the photo with the heat map over it."""

    folder: Path

    def start(self) -> None:
        """Do nothing: each photo's file stands for itself."""

    def write(self, record: Explanation) -> None:
        """Write the file of a record without an error, and its name into the record."""
        name, data = f"{output_name(record.path)}.explain.png", io.BytesIO()
        record.overlay().save(data, "PNG", compress_level=4)
        write_files({self.folder / name: data.getvalue()})
        record.files["overlay"] = name

    def finish(self, names: Sequence[str]) -> None:
        """Do nothing: each photo's file stands for itself."""


class ExplanationWriter(RecordWriter[Explanation]):
    """Writes explanations: in a CSV row the class, the one it is compared with, and the place that speaks most for it.

    The map's values are in JSON only.
    """

    columns = ("width", "height", "index", "class_id", "label", "probability", "logit", "against_class_id", "at",
               "method", "peak_x", "peak_y")  # fmt: skip

    def cells(self, record: Explanation) -> list[object]:
        """Return the cells of a CSV row."""
        if record.error is not None:
            return []
        row = record.to_dict()
        peak = {"peak_x": row["peak"][0], "peak_y": row["peak"][1]}
        row |= {"against_class_id": row.get("against", {}).get("class_id", ""), **peak}
        return [row[column] for column in self.columns]

    def lines(self, record: Explanation, shown: Callable[[str], str]) -> list[str]:
        """Return one line: the class, and the place that speaks most for it."""
        if record.target is None:
            return []
        target, (x, y) = record.target, record.peak
        tail = f"   mostly at {x:.0f},{y:.0f}"
        if record.against is not None:
            tail += f", rather than {shown(record.against.label)}"
        return class_lines([(target.probability, target.label, target.class_id)], shown, [tail])
