"""The bar on standard error: how many of how many, how fast, how long still. Imported only where a bar is shown."""

from __future__ import annotations

from typing import Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from dla.cli.common import clock

__all__ = ["ProgressBar"]


class ProgressBar:
    """A bar as long as the `with` block lasts; what is logged stays above it."""

    def __init__(self, prefix: str) -> None:
        words = TextColumn("{task.description}", markup=False)
        columns = (words, BarColumn(bar_width=24), _Done(), _Rate(), _TimeLeft())
        self.bars = Bars(*columns, console=Console(stderr=True), transient=True)
        self.task = self.bars.add_task("", visible=False)
        self.prefix = prefix

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def start(self, what: str, total: int | None = None, unit: str = "photos") -> None:
        self.bars.remove_task(self.task)
        self.task = self.bars.add_task(what, total=total, unit=unit)

    def advance(self, count: int = 1) -> None:
        self.bars.advance(self.task, count)
        task = self.bars.tasks[0]
        if task.finished:
            self.bars.update(self.task, visible=False)

    def note(self, words: str) -> None:
        """Say where the work stands, in place of its name."""
        self.bars.update(self.task, description=words)

    def log(self, sentence: str) -> None:
        self.bars.console.print(self.prefix + sentence, markup=False, highlight=False, soft_wrap=True)


def rate(task: Task) -> float:
    """Units a second since the task began."""
    return task.completed / task.elapsed if task.elapsed else 0.0


def amount(count: float, unit: str) -> str:
    """A number of units in words."""
    return decimal(int(count)) if unit == "bytes" else f"{count:,.0f}" if count >= 10 else f"{count:.3g}"


class _Done(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        done = (
            amount(task.completed, unit)
            if task.total is None
            else "/".join(amount(count, unit) for count in (task.completed, task.total))
        )
        return Text(done if unit == "bytes" else f"{done} {unit}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        each = amount(rate(task), unit)
        return Text("" if not rate(task) else f"{each}/s" if unit == "bytes" else f"{each} {unit}/s")


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        known = task.total is not None and rate(task)
        return Text(f"{clock((task.total - task.completed) / rate(task))} left" if known else "")
