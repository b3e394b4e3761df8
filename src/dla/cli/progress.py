"""The progress bar on standard error: count, rate and time left. Imported only when a bar is shown."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text


class ProgressBar:
    """One bar, reused for consecutive tasks; it is hidden when a task is done."""

    def __init__(self, console: Console | None = None) -> None:
        words = TextColumn("{task.description}", markup=False)
        columns = (words, BarColumn(bar_width=24), _Done(), _Rate(), _TimeLeft())
        console = console or Console(stderr=True)
        # rich redirects stdout to its console meanwhile, which is right for a terminal but not for a pipe
        self.bars = Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty())
        self.task = self.bars.add_task("", visible=False, unit="")
        self.bars.start()

    def close(self) -> None:
        """Remove the bar."""
        self.bars.stop()

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Start a task in place of the previous one; `unit` "bytes" is shown as kB, MB and so on."""
        self.bars.remove_task(self.task)
        self.task = self.bars.add_task(what, total=total, unit=unit)

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""
        self.bars.advance(self.task, count)
        if self.bars.finished:
            self.bars.update(self.task, visible=False)

    def describe(self, words: str) -> None:
        """Change the text before the bar."""
        self.bars.update(self.task, description=words)

    def print(self, line: str) -> None:
        """Print a line above the bar."""
        self.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Format seconds as 1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rate_text(done: float, seconds: float | None, unit: str) -> str:
    """Return the units per second; empty before anything is done."""
    rate = done / seconds if seconds else 0.0
    if not rate:
        return ""
    return f"{decimal(int(rate))}/s" if unit == "bytes" else f"{rate:.{0 if rate >= 10 else 1}f} {unit}/s"


def left_text(done: float, total: float | None, seconds: float | None) -> str:
    """Return the time left at the rate so far; empty if the total or the rate is unknown."""
    return f"{clock((total - done) * seconds / done)} left" if total is not None and done and seconds else ""


class _Done(ProgressColumn):
    def render(self, task: Task) -> Text:
        counts = [task.completed] if task.total is None else [task.completed, task.total]
        if task.fields["unit"] == "bytes":
            return Text("/".join(decimal(int(count)) for count in counts))
        return Text("/".join(f"{count:,.0f}" for count in counts) + f" {task.fields['unit']}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate_text(task.completed, task.elapsed, task.fields["unit"]))


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(left_text(task.completed, task.total, task.elapsed))
