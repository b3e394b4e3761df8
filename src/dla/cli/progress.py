"""The bar on standard error: how many, how fast, how long still. Imported only where a bar is shown."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from dla.training.events import EpochEvent, RunListener, StepEvent

__all__ = ["bar", "clock", "say", "watched"]


T = TypeVar("T")


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.0f} {self.unit}/s" if task.speed else "")


def bar(items: Iterable[T], total: int | None, doing: str, unit: str) -> Iterator[T]:
    """`items`, with a bar that goes away at the end."""
    columns = (TextColumn(doing), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield from progress.track(items, total=total)


PLAIN_SECONDS = 30.0


@contextmanager
def watched(quiet: bool) -> Iterator[RunListener]:
    """A listener that shows the run as long as the context lasts; with `quiet` it shows nothing."""
    if quiet:
        yield RunListener()
    elif sys.stderr.isatty():
        with _Bar() as bar:
            yield RunListener(bar.said, bar.step, bar.epoch)
    else:
        lines = _Lines()
        yield RunListener(say, lines.step, lines.epoch)


def say(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


class _Pace:
    """Photos a second and the seconds left, from the steps since this process began."""

    def __init__(self) -> None:
        self.began, self.photos = time.monotonic(), 0

    def after(self, step: StepEvent, epochs: int) -> tuple[float, float]:
        self.photos += step.photos
        rate = self.photos / max(time.monotonic() - self.began, 1e-9)
        left = (epochs - step.epoch) * step.steps + step.steps - step.step
        return rate, left * step.photos / rate


class _Lines:
    """A line an epoch, and one every half minute."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def step(self, step: StepEvent) -> None:
        if time.monotonic() - self.last > PLAIN_SECONDS:
            self.last = time.monotonic()
            say(f"  epoch {step.epoch}  step {step.step}/{step.steps}  loss {step.loss:.3f}")

    def epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        self.last = time.monotonic()
        say(summary(epoch, is_best))


class _Bar:
    """A bar that fills an epoch after another; each leaves its line behind."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[figures]}"))
        self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.progress.add_task("", visible=False, figures="")
        self.pace = _Pace()

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def said(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def step(self, step: StepEvent) -> None:
        rate, left = self.pace.after(step, step.epochs)
        right = "" if math.isnan(step.top1) else f"  right {step.top1:.0%}"
        figures = f"loss {step.loss:.2f}{right}  {rate:.0f} photos/s  {clock(left)} left"
        self.progress.update(self.task, description=f"epoch {step.epoch}/{step.epochs}", visible=True, total=step.steps,
                             completed=step.step, figures=figures)  # fmt: skip

    def epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        self.progress.update(self.task, visible=False)
        self.said(summary(epoch, is_best))


def summary(epoch: EpochEvent, is_best: bool) -> str:
    """An epoch in a line."""
    best = "  best" if is_best else ""
    return (
        f"epoch {epoch.epoch}  loss {epoch.loss:.3f}  val {epoch.top1:.1%} / {epoch.top5:.1%}  "
        f"{epoch.photos_per_second:.0f} photos/s  {epoch.seconds:.0f} s{best}"
    )


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
