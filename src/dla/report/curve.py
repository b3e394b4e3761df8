"""The curve of losses over learning rates, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dla.errors import UnavailableError
from dla.report.write import naming

__all__ = ["check_can_draw", "draw_rates"]


def check_can_draw() -> None:
    """See that curves can be drawn, before anything long.

    Raises:
        UnavailableError: matplotlib is missing.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UnavailableError("the curve is drawn by matplotlib, which is missing: pip install 'dla[train]'") from None


def draw_rates(rates: Sequence[float], losses: Sequence[float], proposed: float, path: Path) -> None:
    """Losses over learning rates (logarithmic), with a line at the proposed one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(rates, losses, color="#1f5fa8")
    axes.axvline(proposed, color="#c8501e", linestyle="--", label=f"proposed: {proposed:g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss, running mean")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with naming(path):
        figure.savefig(path)
