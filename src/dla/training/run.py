"""`dla train` from Python: `train("flowers/", "finetune-small")`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from dla.data.prefetch import BLOCKED_S
from dla.errors import UsageError
from dla.html_report.page import check_can_write, mosaic_png
from dla.options import PhotoCache, RuntimeOptions
from dla.storage.files import write_file
from dla.training.batches import fit_batch
from dla.training.checkpoints import Checkpoints
from dla.training.distributed import Ranks, StopSignal, process_group
from dla.training.events import EpochEvent, StepEvent, TrainerCallback
from dla.training.memory import enough_memory
from dla.training.recipe import Recipe
from dla.training.recipe_files import default_output, default_recipe, recipe_from
from dla.training.run_folder import RunFolder, environment, environment_difference, repeatable, run_lock
from dla.training.setup import TASKS, Setup, check_apart, set_up, with_data
from dla.training.task import Runtime, Task
from dla.types import NO_PROGRESS, Progress
from dla.weights.model_folder import half_precision, write_folder


def train(
    data: str | Path | None = None,
    recipe: str | Recipe | None = None,
    *,
    output: str | Path | None = None,
    workers: int = RuntimeOptions.workers,
    device: str = RuntimeOptions.device,
    cache: PhotoCache = RuntimeOptions.photo_cache,
    save_every: float = RuntimeOptions.save_every,
    settings: Mapping[str, Any] | None = None,
    lower_batch: bool | None = None,
    progress: Progress = NO_PROGRESS,
    callback: TrainerCallback | None = None,
) -> Path:
    """Train a network on photos. Return the run's folder, whose `best` is a model folder for `dla.load`.

    Called again with the same arguments, it continues an interrupted run from its newest checkpoint; for a finished run
    it does nothing.

    Args:
        data: a folder with one subfolder per class, a table or an archive (docs/data.md); None: the recipe's `photos`.
        recipe: the name of a built-in recipe, a YAML file, or a `Recipe`; None: the default one of the task in
            `settings`, for classifiers finetune-small.
        output: the run's folder; None: runs/<recipe>-<data>.
        workers: threads that decode, crop and resize photos; 0: the training thread does it.
        device: "auto", "cpu", "cuda", ...
        cache: "ram" caches decoded photos in up to half of the memory, "disk" in the user's cache folder.
        save_every: seconds between checkpoints; each epoch also ends with one.
        settings: fields of the recipe to set, such as {"epochs": 3, "optimizer.momentum": 0.8}.
        lower_batch: lower a batch size that is larger than the number of training photos, in place of an error; None:
            only that of a recipe given by name or file.
        progress: receives the number of photos of each step, and messages.
        callback: receives the figures of each step and each epoch.

    Raises:
        UnknownNameError: no such recipe, field or network.
        UsageError: an invalid value, or `output` holds a run with other settings or a run in progress.
        UnavailableError: the data, the weights or a package are missing.
        CheckError: too many photos cannot be read.
        DlaError: the loss is not finite, or the folder cannot be written.
    """
    recipe = default_recipe(settings or {}) if recipe is None else recipe
    with process_group(device) as ranks:
        shown = progress if ranks.is_main else NO_PROGRESS
        whole = with_data(resolve_recipe(recipe, settings), data)
        runtime = Runtime.from_options(workers, device, cache, shown, ranks)
        check_can_write()
        folder = Path(output) if output else default_output(recipe if isinstance(recipe, str) else None, whole.photos)
        check_apart(folder, whole)
        run = _Run(whole, RunFolder(folder, TASKS[whole.task].figure), runtime)
        if lower_batch is None:
            lower_batch = isinstance(recipe, str) and "batch_size" not in (settings or {})
        with run_lock(folder) if ranks.is_main else nullcontext(), enough_memory(whole):
            facts = ranks.broadcast_object(run.facts)
            if facts.get("finished"):
                if ranks.is_main:
                    shown.log(f"{folder} is finished: {run.outcome()}")
                return folder
            splits = run.photos()
            fitted = with_fitting_batch(whole, splits, lower_batch, shown)
            # leave the caller's random state as it was
            with torch.random.fork_rng(_gpus(runtime.device)), repeatable():
                setup = set_up(fitted, splits, runtime)
                checkpoints = run.start(setup, splits, facts)
                with StopSignal(ranks) as stop:
                    run_callback = _RunCallback(
                        run, setup, checkpoints, stop, callback or TrainerCallback(), save_every
                    )
                    shown.start("training", setup.photos_left)
                    setup.trainer.run(setup.batches, setup.validation, run_callback)
                run.finish(splits, setup)
    return folder


def resolve_recipe(recipe: str | Recipe, settings: Mapping[str, Any] | None) -> Recipe:
    """Return the recipe, read from its name or file if need be, with `settings` applied.

    Raises:
        UsageError: `settings` are given with a `Recipe` object.
    """
    if not isinstance(recipe, Recipe):
        return recipe_from(recipe, settings or {})
    if settings:
        raise UsageError("settings apply to a recipe given by name or file. Change a Recipe with dataclasses.replace")
    return recipe


def with_fitting_batch(recipe: Recipe, splits: Any, lower: bool, progress: Progress) -> Recipe:
    """Return the recipe with a batch size that the photos allow, and report a lowered one.

    Raises:
        UsageError: the batch is too large and may not be lowered.
    """
    fitted = fit_batch(recipe, len(splits.train), lower)
    if fitted != recipe:
        few = f"there are only {len(splits.train):,} photos to train with"
        progress.log(f"batch   {fitted.batch_size} photos per step instead of {recipe.batch_size}: {few}")
    return fitted


@dataclass(frozen=True)
class _Run:
    """A run and its folder, shared by all ranks."""

    recipe: Recipe
    folder: RunFolder
    runtime: Runtime

    @property
    def task(self) -> Task:
        return TASKS[self.recipe.task]

    @property
    def ranks(self) -> Ranks:
        return self.runtime.ranks

    def facts(self) -> dict[str, Any]:
        """Check that the folder belongs to this recipe, and return what run.json holds."""
        self.folder.check(self.recipe)
        return self.folder.facts()

    def photos(self) -> Any:
        """Return the photos of the run: those in data.json, or at the first start all that can be read."""
        log = self.runtime.progress.log
        splits = self._open_splits() if self.ranks.is_main else None
        shared = self.ranks.broadcast_object(lambda: splits and self.task.saved(splits, self.recipe))
        if splits is None:
            return self.task.restore(shared or {}, self.recipe)
        for note in splits.notes:
            log(note)
        counts = f"{len(splits.train):,} train, {len(splits.val):,} val, {len(splits.train.class_ids)} classes"
        left = f"; {len(splits.unreadable):,} left out ({self.folder.path}/data.json)" if splits.unreadable else ""
        log(f"data    {counts}{left}")
        return splits

    def _open_splits(self) -> Any:
        saved = self.folder.data()
        if saved is None:
            return self.task.open_photos(self.recipe, self.runtime)
        return self.task.restore(saved, self.recipe)

    def start(self, setup: Setup, splits: Any, before: Mapping[str, Any]) -> Checkpoints:
        """Claim the folder, and restore the newest checkpoint if there is one."""
        trainer, checkpoints = setup.trainer, Checkpoints(self.folder.checkpoints)
        if self.ranks.is_main:
            self._claim(splits, before)
            self.folder.update(batch_size=trainer.recipe.batch_size)
        state = self.ranks.broadcast_object(lambda: checkpoints.load_newest(self.runtime.progress))
        if state is not None:
            trainer.load_state(*state)
            self.runtime.progress.log(f"continues at epoch {trainer.position.epoch + 1}, step {trainer.position.step}")
        if self.ranks.is_main:
            self.folder.truncate_epochs(trainer.position.epoch)
            if not self.folder.mosaic.exists():
                x_N3HW, labels = trainer.prepare(next(setup.batches.epoch(0, 0)))
                tiles = self.task.tiles(trainer.pixels(x_N3HW), labels, setup.initial)
                write_file(self.folder.mosaic, mosaic_png(*tiles))
        return checkpoints

    def _claim(self, splits: Any, before: Mapping[str, Any]) -> None:
        """Write the run's files. It is called only once everything could be opened, so that a typo leaves no folder."""
        now = environment(self.runtime.device, self.ranks)
        self.folder.claim(self.recipe, self.task.saved(splits, self.recipe))
        if changed := environment_difference(before, now):
            self.runtime.progress.log(changed)
        self.folder.update(**now, data=_summary(splits))

    def finish(self, splits: Any, setup: Setup) -> None:
        """Validate the stored best weights, and write the report."""
        figures = self.task.report(self.folder.path, splits, setup.validation, self.ranks)
        if not self.ranks.is_main:
            return
        self.folder.update(best=self.folder.facts()["best"] | figures, finished=True)
        self.runtime.progress.log(self.outcome())

    def outcome(self) -> str:
        """Return a line with the best epoch's figure and the paths of report and model."""
        best = self.folder.facts()["best"]
        figure = self.task.figure
        low, high = best[f"{figure}_interval"]
        return (
            f"best {100 * best[figure]:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}), epoch "
            f"{best['epoch']}.  Report: {self.folder.report}   Model: {self.folder.best}"
        )


class _RunCallback(TrainerCallback):
    """Writes metrics, checkpoints and the best weights on the main rank, and stops all ranks together on a signal."""

    def __init__(
        self,
        run: _Run,
        setup: Setup,
        checkpoints: Checkpoints,
        stop: StopSignal,
        callback: TrainerCallback,
        save_every: float,
    ) -> None:
        self.run, self.trainer, self.config, self.checkpoints = run, setup.trainer, setup.initial.config, checkpoints
        self.steps, self.stop, self.callback, self.save_every = setup.batches.steps, stop, callback, save_every
        self.saved = time.monotonic()

    def on_step(self, step: StepEvent) -> None:
        if self.run.ranks.is_main:
            self.run.runtime.progress.advance(step.photos)
            self.callback.on_step(step)
        self.exit_if_requested()
        if time.monotonic() - self.saved > self.save_every:
            self.checkpoint()

    def on_wait(self) -> None:
        if self.run.ranks.is_main:
            self.callback.on_wait()
        if self.stop.seconds_ago() > BLOCKED_S:  # without the other ranks' consent: a disk may never answer
            self.save_and_exit()

    def on_validation_batch(self) -> None:
        if self.run.ranks.is_main:
            self.callback.on_validation_batch()
        self.exit_if_requested()

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        if not self.run.ranks.is_main:
            return
        # the checkpoint comes last: without it the epoch is run again, to the same bits
        if is_best:
            self.write_best(epoch)
        self.run.folder.add_epoch(epoch)
        self.checkpoint(is_best)
        self.callback.on_epoch(epoch, is_best)

    def exit_if_requested(self) -> None:
        """Write a checkpoint and exit if a signal asked any rank for it."""
        if self.stop.stop_requested():
            self.save_and_exit()

    def save_and_exit(self) -> NoReturn:
        """Write a checkpoint and exit."""
        self.checkpoint()
        position = self.trainer.position
        step = position.epoch * self.steps + position.step
        self.run.runtime.progress.log(f"Saved at step {step}. Run the same command again to continue.")
        self.stop.exit()

    def checkpoint(self, is_best: bool = False) -> None:
        """Save the state of the run."""
        position = self.trainer.position
        if self.run.ranks.is_main:
            self.checkpoints.save(position.epoch * self.steps + position.step, *self.trainer.state(), best=is_best)
        self.saved = time.monotonic()

    def write_best(self, epoch: EpochEvent) -> None:
        """Write the model folder `best`."""
        recipe = self.trainer.recipe
        results = {name: value for name, value in epoch.figures.items() if name != "val_loss"}
        dataset = recipe.dataset or os.fsencode(Path(recipe.photos).name).decode(errors="replace")
        dla = {**self.config.dla, "dataset": dataset, "recipe": _shareable(recipe), "results": results}
        weights = half_precision(self.trainer.stored().state_dict())
        write_folder(self.run.folder.best, weights, replace(self.config, dla=dla))
        self.run.folder.update(best={"epoch": epoch.epoch, **results})


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe for the model folder, without local paths."""
    settings = asdict(recipe)
    del settings["photos"]
    for key in ("model", "scores"):
        if settings["distill"][key]:
            settings["distill"][key] = Path(settings["distill"][key]).name
    if Path(recipe.model).exists():
        settings["model"] = Path(recipe.model).name
    return settings


def _summary(splits: Any) -> dict[str, Any]:
    return {
        "train": len(splits.train),
        "val": len(splits.val),
        "classes": len(splits.train.class_ids),
        "split_method": splits.split_method,
        "unreadable": len(splits.unreadable),
    }


def _gpus(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []
