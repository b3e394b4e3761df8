"""`dla train`."""

from __future__ import annotations

import math
import os
import time
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

from dla.cli.common import show_progress
from dla.cli.parser import Parser
from dla.errors import UsageError
from dla.options import RuntimeOptions
from dla.text_table import text_table
from dla.training.events import EpochEvent, StepEvent, TrainerCallback
from dla.training.recipe import Recipe
from dla.training.recipe_files import (
    DEFAULT_RECIPE,
    DEFAULT_RECIPES,
    default_output,
    find_recipe,
    read_recipe,
    recipe_from,
    shipped_recipes,
    to_yaml,
)
from dla.types import Progress

DESCRIPTION = f"""\
Train a network on your photos, or fine-tune one. To continue an interrupted run, give the same command again.

Built-in recipes for --recipe: {", ".join(shipped_recipes())}. Without --recipe it is {DEFAULT_RECIPE}, with --task
segment or edges {DEFAULT_RECIPES["segment"]} or {DEFAULT_RECIPES["edges"]}. A default below
is for an option that the recipe leaves out. A batch size of the recipe is lowered if there are fewer photos; one given
here is not."""

EXAMPLE = """\
  dla train flowers/
  dla train flowers/ --recipe finetune --model dla34 --epochs 20 --output runs/flowers
  dla train streets/ --task segment
  dla train flowers/ --optimizer.weight-decay 0.001 --print-config > mine.yaml
  dla train --recipe runs/flowers/config.yaml --output runs/again"""

# The fields of a recipe that are listed first in --help, with the placeholder of their value.
_SHORT = {"model": "MODEL", "epochs": "N", "batch_size": "N", "lr": "RATE", "seed": "N"}


def build_parser(default: str = DEFAULT_RECIPE) -> Parser:
    """Build the parser of the command; `default` is the recipe that is read if none is named."""
    parser = Parser("train", DESCRIPTION, EXAMPLE, "[DATA] [options]", config="--recipe", find_file=_recipe_file,
                    default_file=default)  # fmt: skip
    parser.flag("given", metavar="DATA", nargs="?", help="a folder with one subfolder per class, optionally under "
                "train/ and val/, or a table, an archive, or photos with masks (docs/data.md)")  # fmt: skip
    parser.options(Recipe, **_SHORT)
    parser.flag("-o", "--output", metavar="DIR", help="the run's folder (default: runs/<recipe>-<data>)")
    parser.options(RuntimeOptions, workers="N", device="D", photo_cache=None, save_every="SECONDS")
    parser.flag(
        "--dry-run", action="store_true", help="time a few steps, print the estimated time and memory, and exit"
    )
    parser.flag("--find-lr", action="store_true", help="propose a learning rate from the loss at rising rates "
                "(plotted in lr.png in the run's folder), and exit")  # fmt: skip
    groups = {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}
    parser.group(Recipe, None, skip={*_SHORT, *groups})
    for name, kind in groups.items():
        parser.group(kind, name)  # type: ignore[arg-type]
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    parser = build_parser(DEFAULT_RECIPES.get(_task_in(argv), DEFAULT_RECIPE))
    values = parser.instantiate(parser.read(argv)).as_dict()
    recipe = Recipe(**{f.name: values[f.name] for f in fields(Recipe)})
    if values["given"] is not None:
        recipe = replace(recipe, photos=values["given"])
    if values["print_config"]:
        print(to_yaml(recipe), end="")
        return 0

    name = str(values["recipe"][-1])
    output = Path(values["output"] or default_output(name, recipe.photos))
    options = {key: values[key] for key in ("workers", "device")} | {"cache": values["photo_cache"]}
    options["lower_batch"] = not _sets_batch_size(argv)
    if values["dry_run"] or values["find_lr"]:
        _check_single_process(values)
    with _show(values["quiet"]) as progress:
        options["progress"] = progress
        progress.log(f"recipe  {_recipe_name(name)}")
        if values["dry_run"]:
            _print_estimate(recipe, options)
        elif values["find_lr"]:
            _print_proposed_rate(recipe, output / "lr.png", options)
        else:
            from dla.training.run import train

            figures = RunFigures(progress, recipe.epochs)
            train(recipe=recipe, output=output, save_every=values["save_every"], callback=figures, **options)
    return 0


def _task_in(argv: list[str]) -> str:
    """Return the value of the last --task, which decides the default recipe; the parser checks it."""
    task = os.environ.get("DLA_TASK", "")
    for flag, following in pairwise([*argv, ""]):
        name, equals, value = flag.partition("=")
        if name == "--task":
            task = value if equals else following
    return task


def _sets_batch_size(argv: list[str]) -> bool:
    """Return whether the user chose the batch size, rather than the recipe."""
    return "DLA_BATCH_SIZE" in os.environ or any(a.partition("=")[0] == "--batch-size" for a in argv)


def _check_single_process(values: dict[str, Any]) -> None:
    from dla.training.distributed import Ranks

    if Ranks.from_env().world > 1:
        flag = "--dry-run" if values["dry_run"] else "--find-lr"
        raise UsageError(f"{flag} works in a single process. Run it without torchrun")


def _show(quiet: bool) -> AbstractContextManager[Progress]:
    from dla.training.distributed import Ranks

    return show_progress(quiet or not Ranks.from_env().is_main, prefix="")


# Figures of a validation, as they are called in a line.
FIGURE_NAMES = {"top1": "top-1", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy", "ods": "ODS",
                "ois": "OIS", "ap": "AP"}  # fmt: skip


class RunFigures(TrainerCallback):
    """Shows the figures of each step in the progress bar, and prints those of each epoch of `epochs`."""

    def __init__(self, progress: Progress, epochs: int) -> None:
        self.progress, self.epochs = progress, epochs
        self.step: StepEvent | None = None
        self.step_ended = 0.0
        self.photos, self.began = 0, 0.0  # as the progress bar counts: of all epochs in this process

    def on_step(self, step: StepEvent) -> None:
        """Show the step's loss and accuracy."""
        self.step, self.step_ended = step, time.monotonic()
        self.photos += step.photos
        accuracy = "" if math.isnan(step.accuracy) else f"  accuracy {100 * step.accuracy:.0f} %"
        self.progress.note(
            f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps}  loss {step.loss:.3f}{accuracy}"
        )

    def on_validation_batch(self) -> None:
        """Show that the run is validating."""
        self.progress.note("validating")

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        """Print the epoch's figures."""
        self.progress.log(summary(epoch, self.epochs, is_best, self._time_left(epoch)))

    def _time_left(self, epoch: EpochEvent) -> str:
        """Return the time of the remaining epochs at the speed so far; empty if no step ran here, or none remains."""
        from dla.cli.progress import left_text

        if self.step is None or epoch.epoch >= self.epochs:
            return ""
        self.began = self.began or self.step_ended - epoch.seconds
        remaining = (self.epochs - epoch.epoch) * self.step.steps * self.step.photos
        return left_text(self.photos, self.photos + remaining, time.monotonic() - self.began)


def summary(epoch: EpochEvent, epochs: int, is_best: bool, time_left: str) -> str:
    """Return an epoch's figures in one line."""
    from dla.cli.progress import rate_text

    (best_name, first), *others = ((n, v) for n, v in epoch.figures.items() if n != "val_loss")
    more = "".join(f" ({FIGURE_NAMES.get(n, n)} {100 * v:.1f} %)" for n, v in others[:1] if v < 1)
    name = "" if best_name == "top1" else f"{FIGURE_NAMES.get(best_name, best_name)} "
    best = ", the best so far" if is_best else ""
    accuracy = f"val {name}{100 * first:.1f} %{more}{best}"
    pace = rate_text(epoch.photos_per_second, 1.0, "photos"), time_left
    return "  ".join(filter(None, (f"epoch {epoch.epoch}/{epochs}", f"loss {epoch.loss:.3f}", accuracy, *pace)))


def _print_estimate(recipe: Recipe, options: dict[str, Any]) -> None:
    from dla.cli.progress import clock
    from dla.training.estimate import estimate_run

    estimate = estimate_run(recipe, **options)
    steps = ", ".join(
        f"{t:.2f} s at {height if height == width else f'{height}x{width}'} px"
        for (height, width), t in estimate.step_seconds.items()
    )
    total_steps = estimate.steps_per_epoch * estimate.epochs
    rows = [
        ("data", f"{estimate.train:,} train, {estimate.val:,} val, {estimate.classes} classes"),
        ("network", f"{estimate.parameters:,} parameters, {estimate.trainable:,} trainable"),
        ("steps", f"{estimate.steps_per_epoch:,} per epoch, {total_steps:,} in {estimate.epochs} epochs"),
        ("per step", f"{steps}, {estimate.batch_size} photos each"),
        ("time", f"about {clock(estimate.total_seconds)}, {estimate.val_seconds:.0f} s of each epoch for validation"),
    ]
    if estimate.peak_bytes is not None:
        rows.insert(4, ("memory", f"{estimate.peak_bytes / 1e6:,.0f} MB at most"))
    print("\n".join(text_table(rows, "<<")))


def _print_proposed_rate(recipe: Recipe, picture: Path, options: dict[str, Any]) -> None:
    from dla.training.estimate import find_learning_rate

    sweep = find_learning_rate(recipe, picture, **options)
    print(f"--lr {sweep.proposed:g}")
    options["progress"].log(
        f"The loss was lowest at {sweep.proposed * 10:g}; a tenth of that is proposed. Curve: {picture}"
    )


def _recipe_name(path: str) -> str:
    """Return the name of a built-in recipe, or the path of another."""
    name = Path(path).stem
    return name if name in shipped_recipes() and Path(path) == find_recipe(name) else path


def _recipe_file(name: str) -> str:
    """Return the file of a recipe after checking it, because the parser's errors do not name the file."""
    path = str(find_recipe(name))
    read_recipe(name)  # raises with the nearest name for an unknown field
    try:
        recipe_from(name, {})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return path
