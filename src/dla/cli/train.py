"""`dla train`."""

from __future__ import annotations

import math
import re
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
Train a network on photos of your own, or fine-tune one. A run that was stopped, by whatever, goes on when the same
command is given again. Recipes that come along: {", ".join(shipped_recipes())}."""

EXAMPLE = """\
  dla train flowers/ --recipe finetune-small
  dla train flowers/ --recipe finetune --model dla34 --epochs 20 --output runs/flowers
  dla train flowers/ --recipe finetune-small --optimizer.weight-decay 0.001 --print-config > mine.yaml
  dla train --recipe runs/flowers/config.yaml --output runs/again"""

# The fields of a recipe that have a short flag, by what stands for their value in --help.
_SHORT = {"model": "M", "epochs": "N", "batch_size": "N", "lr": "RATE", "seed": "N"}


def build_parser() -> Parser:
    parser = Parser("train", DESCRIPTION, EXAMPLE, "[DATA] [options]", config="--recipe", find_file=_recipe_file)
    parser.flag("given", metavar="DATA", nargs="?", help="a folder with a folder a class, with train/ and val/ or "
                "without, or tables (docs/data.md)")  # fmt: skip
    parser.options(Recipe, **_SHORT)
    parser.flag("-o", "--output", metavar="DIR", help="the run's folder; a stopped run goes on there (default: "
                "runs/<recipe>-<data>)")  # fmt: skip
    parser.options(RuntimeOptions, workers="N", device="D", photo_cache=None, save_every="SECONDS")
    parser.flag("--dry-run", action="store_true", help="measure a few steps, print steps, memory and time, and stop")
    parser.flag("--find-lr", action="store_true", help="draw the loss over rising learning rates (lr.png in the run's "
                "folder), propose one, and stop")  # fmt: skip
    groups = {name: kind for name, kind in get_type_hints(Recipe).items() if is_dataclass(kind)}
    parser.group(Recipe, None, skip={*_SHORT, *groups})
    for name, kind in groups.items():
        parser.group(kind, name)  # type: ignore[arg-type]
    return parser


def run(argv: list[str]) -> int:
    parser = build_parser()
    values = parser.instantiate(parser.read(_with_underscores(argv))).as_dict()
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
        _refuse_several(values)
    with _show(values["quiet"]) as progress:
        options["progress"] = progress
        if values["dry_run"]:
            _print_plan(recipe, options)
        elif values["find_lr"]:
            _print_rate(recipe, output / "lr.png", options)
        else:
            from dla.training.run import train

            train(
                recipe=recipe, output=output, save_every=values["save_every"], callback=RunFigures(progress), **options
            )
    return 0


def _refuse_several(values: dict[str, Any]) -> None:
    from dla.training.distributed import Ranks

    if Ranks.from_env().world > 1:
        flag = "--dry-run" if values["dry_run"] else "--find-lr"
        raise UsageError(f"{flag} looks at one process: run it without torchrun")


def _show(quiet: bool) -> AbstractContextManager[Progress]:
    from dla.training.distributed import Ranks

    return show_progress(quiet or not Ranks.from_env().is_main, prefix="")


class RunFigures(TrainerCallback):
    """Shows the figures of steps and epochs."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def on_step(self, step: StepEvent) -> None:
        right = "" if math.isnan(step.top1) else f"  right {step.top1:.0%}"
        self.progress.note(
            f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps}  loss {step.loss:.3f}{right}"
        )

    def on_validation_batch(self) -> None:
        self.progress.note("validating")

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        self.progress.log(summary(epoch, is_best))


def summary(epoch: EpochEvent, is_best: bool) -> str:
    """An epoch in a line."""
    best = "  best" if is_best else ""
    return (
        f"epoch {epoch.epoch}  loss {epoch.loss:.3f}  val {epoch.top1:.1%} / {epoch.top5:.1%}  "
        f"{epoch.photos_per_second:.0f} photos/s  {epoch.seconds:.0f} s{best}"
    )


def _print_plan(recipe: Recipe, options: dict[str, Any]) -> None:
    from dla.cli.progress import clock
    from dla.training.estimate import estimate_run

    found = estimate_run(recipe, **options)
    steps = ", ".join(f"{t:.2f} s at {side} px" for side, t in found.step_seconds.items())
    in_all = found.steps_per_epoch * found.epochs
    rows = [
        ("data", f"{found.train:,} train, {found.val:,} val, {found.classes} classes"),
        ("network", f"{found.parameters:,} parameters, {found.trainable:,} trainable"),
        ("steps", f"{found.steps_per_epoch:,} an epoch, {in_all:,} in {found.epochs} epochs"),
        ("a step", f"{steps}, {recipe.batch_size} photos each"),
        ("time", f"about {clock(found.total_seconds)}, {found.val_seconds:.0f} s of each epoch for validation"),
    ]
    if found.peak_bytes is not None:
        rows.insert(4, ("memory", f"{found.peak_bytes / 1e6:,.0f} MB at most"))
    print("\n".join(text_table(rows, "<<")))


def _print_rate(recipe: Recipe, picture: Path, options: dict[str, Any]) -> None:
    from dla.training.estimate import find_learning_rate

    found = find_learning_rate(recipe, picture, **options)
    print(f"--lr {found.proposed:g}")
    options["progress"].log(
        f"the loss was lowest at {found.proposed * 10:g}; a tenth of that is proposed. Curve: {picture}"
    )


def _with_underscores(argv: list[str]) -> list[str]:
    """The arguments with the dashes in dotted flags as underscores: --optimizer.weight-decay."""
    found = []
    for argument in argv:
        flag, *value = argument.partition("=")
        if re.match(r"--\w+\.", flag):
            flag = f"--{flag[2:].replace('-', '_')}"
        found.append("".join([flag, *value]))
    return found


def _recipe_file(name: str) -> str:
    """The file of a recipe that is one: what is wrong with it is said with its name, which the parser does not do."""
    path = str(find_recipe(name))
    read_recipe(name)  # says the nearest name of a field that no recipe has
    try:
        recipe_from(name, {})
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return path
