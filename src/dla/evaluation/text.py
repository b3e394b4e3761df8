"""The results of a validation as a text table."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dla.evaluation.result import Validation, Validations
from dla.html_report.sections import shown_names
from dla.metrics.classification import Comparison, Evaluation
from dla.text_table import text_table

FEW, WORST = 12, 5


def single_as_text(result: Validation) -> str:
    """Return one model's figures, its weakest classes (all of them if they are few) and its commonest errors."""
    e = result.evaluation
    rows = [("  model", result.model), *((f"  {name}", value) for name, value in _figures(e))]
    if result.calibrated:
        c = result.calibrated
        after = f"log loss {c.log_loss:.3f}, calibration error {100 * c.calibration_error:.1f} %"
        rows.append(("  calibrated", f"temperature {c.temperature:g}, saved in {result.origin}; with it: {after}"))
    names = shown_names(result.split.class_ids, list(result.labels))
    return "\n".join([_head(result), *text_table(rows, "<<"), "", *_classes(e, names), *_confusions(e, names)]) + "\n"


def several_as_text(result: Validations) -> str:
    """Return a table with one row per model, and the comparison of each pair."""
    few = len(result.models[0].labels) <= 5  # then every class is among the first five
    ranks = ("top-1",) if few else ("top-1", "top-5")
    rows = [("model", *(cell for rank in ranks for cell in (rank, "95 % interval")), "log loss", "calibration error")]
    for m in result.models:
        e = m.evaluation
        shares = [(e.top1, e.top1_interval), (e.top5, e.top5_interval)][: len(ranks)]
        cells = [cell for share, interval in shares for cell in (_percent(share), interval.percent())]
        rows.append((m.model, *cells, f"{e.log_loss:.3f}", _percent(e.calibration.error)))
    lines = [_head(result.models[0]), "", *text_table(rows, "<" + "><" * len(ranks) + ">>")]
    for one, other, c in result.comparisons:
        lines += ["", f"{one} minus {other}", *_comparison(c, few)]
    return "\n".join(lines) + "\n"


def _head(result: Validation) -> str:
    seen = sum(c.support > 0 for c in result.evaluation.classes)
    total = f" of the model's {len(result.labels):,}" if seen < len(result.labels) else ""
    return f"{result.data}: {result.evaluation.count:,} photos, {seen:,}{total} classes"


def _figures(e: Evaluation) -> Iterator[tuple[str, str]]:
    yield "top-1", f"{_percent(e.top1)}   95 % interval {e.top1_interval.percent()}"
    if len(e.classes) > 5:
        yield "top-5", f"{_percent(e.top5)}   95 % interval {e.top5_interval.percent()}"
    yield "mean recall", f"{_percent(e.balanced_accuracy)}   every class has the same weight"
    yield "mean F1", _percent(e.macro_f1)
    yield "log loss", f"{e.log_loss:7.3f}"
    yield "calibration error", f"{_percent(e.calibration.error)}   predicted probability against accuracy"


def _classes(e: Evaluation, names: tuple[str, ...]) -> list[str]:
    order = sorted((k for k, c in enumerate(e.classes) if c.support), key=lambda k: (e.classes[k].f1, names[k]))
    shown = order if len(order) <= FEW else order[:WORST]
    title = "class" if len(shown) == len(order) else "weakest classes"
    rows = [(title, "photos", "recall", "precision", "F1")]
    for k in shown:
        c = e.classes[k]
        rows.append((names[k], f"{c.support}", _percent(c.recall), _percent(c.precision), _percent(c.f1)))
    return text_table(rows, "<>>>>")


def _confusions(e: Evaluation, names: tuple[str, ...]) -> list[str]:
    wrong_KK = e.confusion_KK - np.diag(e.confusion_KK.diagonal())
    order = [divmod(int(place), len(names)) for place in np.argsort(-wrong_KK, axis=None, kind="stable")[:WORST]]
    errors = [(wrong_KK[i, j], names[i], names[j]) for i, j in order if wrong_KK[i, j]]
    rows = [(f"    {count}", f"{label} classified as {other}") for count, label, other in errors]
    return ["", "commonest errors", *text_table(rows, "><")] if rows else []


def _comparison(c: Comparison, few: bool) -> Iterator[str]:
    differences = (("top-1", c.top1, c.top1_interval), ("top-5", c.top5, c.top5_interval))
    for name, difference, interval in differences[: 1 if few else 2]:
        verdict = "may be chance" if interval.low <= 0 <= interval.high else "unlikely to be chance"
        yield f"  {name}  {100 * difference:+5.1f} points, 95 % interval {interval.percent('+')}: {verdict}"
    yield f"  only the first is correct on {c.only_a_correct:,} photos, only the second on {c.only_b_correct:,}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:5.1f} %"
