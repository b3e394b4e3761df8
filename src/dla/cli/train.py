"""`dla train`."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from dla.cli.common import show_progress
from dla.cli.parser import Parser
from dla.errors import UsageError
from dla.options import RuntimeOptions
from dla.text_table import text_table
from dla.training.events import EpochEvent, StepEvent, TrainerCallback
from dla.training.recipe import Recipe
from dla.training.recipe_files import default_output, find_recipe, read_recipe, recipe_from, shipped_recipes, to_yaml
from dla.types import Progress

DESCRIPTION = f"""\
Train a network on your photos, or fine-tune one. To continue an interrupted run, give the same command again.
Built-in recipes for --recipe: {", ".join(shipped_recipes())}."""

EXAMPLE = """\
  dla train flowers/ --recipe finetune-small
  dla train flowers/ --recipe finetune --model dla34 --epochs 20 --output runs/flowers
  dla train flowers/ --recipe finetune-small --optimizer.weight-decay 0.001 --print-config > mine.yaml
  dla train --recipe runs/flowers/config.yaml --output runs/again"""

# The fields of a recipe that are listed first in --help, with the placeholder of their value.
_SHORT = {"model": "MODEL", "epochs": "N", "batch_size": "N", "lr": "RATE", "seed": "N"}


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("train", DESCRIPTION, EXAMPLE, "[DATA] [options]", config="--recipe", find_file=_recipe_file)
    parser.flag("given", metavar="DATA", nargs="?", help="a folder with one subfolder per class, optionally under "
                "train/ and val/, or a table (docs/data.md)")  # fmt: skip
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
    parser = build_parser()
    values = parser.instantiate(parser.read(argv)).as_dict()
    recipe = Recipe(**{f.name: values[f.name] for f in fields(Recipe)})
    if values["given"] is not None:
        recipe = replace(recipe, photos=values["given"])
    if values["print_config"]:
        print(to_yaml(recipe), end="")
        return 0

    name = str(values["recipe"][-1]) if values["recipe"] else None
    output = Path(values["output"] or default_output(name, recipe.photos))
    options = {key: values[key] for key in ("workers", "device")} | {"cache": values["photo_cache"]}
    if values["dry_run"] or values["find_lr"]:
        _check_single_process(values)
    with _show(values["quiet"]) as progress:
        options["progress"] = progress
        if values["dry_run"]:
            _print_estimate(recipe, options)
        elif values["find_lr"]:
            _print_proposed_rate(recipe, output / "lr.png", options)
        else:
            from dla.training.run import train

            train(
                recipe=recipe, output=output, save_every=values["save_every"], callback=RunFigures(progress), **options
            )
    return 0


def _check_single_process(values: dict[str, Any]) -> None:
    from dla.training.distributed import Ranks

    if Ranks.from_env().world > 1:
        flag = "--dry-run" if values["dry_run"] else "--find-lr"
        raise UsageError(f"{flag} works in a single process. Run it without torchrun")


def _show(quiet: bool) -> AbstractContextManager[Progress]:
    from dla.training.distributed import Ranks

    return show_progress(quiet or not Ranks.from_env().is_main, prefix="")


class RunFigures(TrainerCallback):
    """Shows the figures of each step in the progress bar, and prints those of each epoch."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step(self, step: StepEvent) -> None:
        """Show the step's loss and accuracy."""
        accuracy = "" if math.isnan(step.top1) else f"  top-1 {step.top1:.0%}"
        self.progress.note(
            f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps}  loss {step.loss:.3f}{accuracy}"
        )

    def on_validation_batch(self) -> None:
        """Show that the run is validating."""
        self.progress.note("validating")

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        """Print the epoch's figures."""
        self.progress.log(summary(epoch, is_best))


def summary(epoch: EpochEvent, is_best: bool) -> str:
    """Return an epoch's figures in one line."""
    best = "  best" if is_best else ""
    return (
        f"epoch {epoch.epoch}  loss {epoch.loss:.3f}  val {epoch.top1:.1%} / {epoch.top5:.1%}  "
        f"{epoch.photos_per_second:.0f} photos/s  {epoch.seconds:.0f} s{best}"
    )


def _print_estimate(recipe: Recipe, options: dict[str, Any]) -> None:
    from dla.cli.progress import clock
    from dla.training.estimate import estimate_run

    estimate = estimate_run(recipe, **options)
    steps = ", ".join(f"{t:.2f} s at {side} px" for side, t in estimate.step_seconds.items())
    total_steps = estimate.steps_per_epoch * estimate.epochs
    rows = [
        ("data", f"{estimate.train:,} train, {estimate.val:,} val, {estimate.classes} classes"),
        ("network", f"{estimate.parameters:,} parameters, {estimate.trainable:,} trainable"),
        ("steps", f"{estimate.steps_per_epoch:,} per epoch, {total_steps:,} in {estimate.epochs} epochs"),
        ("per step", f"{steps}, {recipe.batch_size} photos each"),
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


def _recipe_file(name: str) -> str:
    """Return the file of a recipe after checking it, because the parser's errors do not name the file."""
    path = str(find_recipe(name))
    read_recipe(name)  # raises with the nearest name for an unknown field
    try:
        recipe_from(name, {})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return path
