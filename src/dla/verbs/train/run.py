"""`dla train` from Python: `train(data, recipe="finetune-small")`."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path

from dla.data.open import open_splits
from dla.data.quick import without_unreadable
from dla.data.saved import restore_splits, splits_to_dict
from dla.data.split import Split, Splits
from dla.data.store import Cache, PhotoStore
from dla.engines.torch import pick_device
from dla.errors import UsageError
from dla.recipes.load import default_output, recipe_from
from dla.recipes.schema import Recipe
from dla.report.mosaic import write_mosaic
from dla.verbs.ranks import Ranks
from dla.verbs.train.batches import TrainBatches
from dla.verbs.train.fit import Fit, Validation, Watcher
from dla.verbs.train.folder import RunFolder
from dla.verbs.train.lock import run_lock
from dla.verbs.train.network import Start, begin
from dla.verbs.train.progress import Epoch, Listener, Step
from dla.verbs.train.state import Checkpoints
from dla.verbs.train.stop import Stop
from dla.verbs.train.teacher import find_teacher
from dla.weights.folder import half_precision, write_folder

__all__ = ["train"]

CHECKPOINT_SECONDS = 120.0

Array = np.ndarray[Any, np.dtype[Any]]


def train(
    data: str | Path | None = None,
    recipe: str | Recipe | None = None,
    *,
    output: str | Path | None = None,
    workers: int = 2,
    device: str = "auto",
    cache: Cache = "none",
    settings: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
) -> Path:
    """Train a network on photos; the folder of the run, in which `best` is a model folder that `dla.load` takes.

    A run that was stopped goes on from its newest checkpoint when it is called again with the same arguments; with one
    that is finished nothing is done.

    Args:
        data: a folder with a folder a class, or tables (docs/data.md); None: what the recipe says.
        recipe: the name of one that comes along, a YAML file, or a `Recipe`; None: every default.
        output: the run's folder; None: runs/<recipe>-<data>.
        workers: threads that decode, crop and resize; 0 does it between the steps.
        device: "auto", "cpu", "cuda", ...
        cache: "ram" keeps decoded photos in memory, up to half of it; "disk" in the user's cache folder.
        settings: fields of the recipe by their dotted names, {"epochs": 3, "optimizer.momentum": 0.8}.
        listener: who hears how it goes.

    Raises:
        UnknownNameError: no such recipe, field or network.
        UsageError: a value that cannot be, or `output` holds a run with other settings, or one in progress.
        UnavailableError: the data or the weights cannot be had.
        DlaError: the loss is not finite, or the folder cannot be written.
    """
    whole = recipe if isinstance(recipe, Recipe) else recipe_from(recipe, settings or {})
    if isinstance(recipe, Recipe) and settings:
        raise UsageError("settings are for a recipe by its name or file. A Recipe has its own: dataclasses.replace")
    photos = str(data) if data is not None else whole.photos
    if not photos:
        raise UsageError("no photos are named. Give the folder, as in dla train photos/")
    whole = replace(whole, photos=str(Path(photos).resolve()))
    folder = Path(output) if output else default_output(recipe if isinstance(recipe, str) else None, photos)
    with run_lock(folder):
        _Run(whole, RunFolder(folder), workers, pick_device(device), cache, listener or Listener()).go()
    return folder


@dataclass
class _Run:
    recipe: Recipe
    folder: RunFolder
    workers: int
    device: torch.device
    cache: Cache
    listener: Listener

    def go(self) -> None:
        self.folder.claim(self.recipe)
        facts = self.folder.facts()
        if facts.get("finished"):
            self.listener.said(f"{self.folder.path} is finished: {_best(facts)}. Model: {self.folder.best}")
            return
        splits = self._open()
        self.folder.tell(**_circumstances(self.device), data=_summary(splits))
        # what happens to PyTorch's randomness here stays here
        with torch.random.fork_rng(_gpus(self.device)):
            self._train(splits.train, splits.val)

    def _open(self) -> Splits:
        """The photos of the run: those it began with, or all that can be read at its beginning."""
        recipe, saved = self.recipe, self.folder.data()
        if saved is None:
            splits = open_splits(recipe.photos, recipe.data, recipe.seed)
            splits = without_unreadable(splits, recipe.data.max_unreadable, self.workers)
            self.folder.write_data(splits_to_dict(splits, recipe.photos))
        else:
            splits = restore_splits(saved, recipe.photos, recipe.data)
        for note in splits.notes:
            self.listener.said(note)
        counts = f"{len(splits.train):,} train, {len(splits.val):,} val, {len(splits.train.class_ids)} classes"
        left = f"; {len(splits.left_out):,} left out ({self.folder.path}/data.json)" if splits.left_out else ""
        self.listener.said(f"data    {counts}{left}")
        return splits

    def _store(self, split: Split) -> PhotoStore:
        place = photo_cache() if self.cache == "disk" else None
        return PhotoStore(split, self.cache, place, say=self.listener.said)

    def _train(self, train: Split, val: Split) -> None:
        torch.manual_seed(self.recipe.seed)
        ranks = Ranks()
        start = begin(self.recipe, train.class_ids)
        for note in start.notes:
            self.listener.said(f"start   {note}")
        teacher = find_teacher(self.recipe.distill, train.class_ids, len(train), self.device)
        fit = Fit(start, self.recipe, train.targets_N, self.device, teacher, ranks)
        checkpoints = Checkpoints(self.folder.checkpoints)
        found = checkpoints.load_newest(self.listener.said)
        if found is not None:
            fit.load_state(*found)
            self.listener.said(f"goes on at epoch {fit.at.epoch + 1}, step {fit.at.step}")
        self.folder.keep_epochs(fit.at.epoch)
        batches = TrainBatches(
            self._store(train), train.targets_N, self.recipe, start.preprocessing, self.workers, ranks
        )
        validation = Validation(self._store(val), val.targets_N, self.recipe.batch_size, self.workers)
        if not self.folder.mosaic.exists():
            self._draw_mosaic(fit, batches)
        with Stop(ranks) as stop:
            keeper = _Keeper(self, fit, start, checkpoints, batches.steps, stop)
            fit.run(batches, validation, Watcher(keeper.after_step, keeper.leave_if_asked, keeper.after_epoch))
        self.folder.tell(finished=True)
        self.listener.said(f"{_best(self.folder.facts())}. Model: {self.folder.best}")

    def _draw_mosaic(self, fit: Fit, batches: TrainBatches) -> None:
        """The first batch of the epoch as the network sees it."""
        x_N3HW, _ = fit.prepare(next(batches.epoch(fit.at.epoch, 0)))
        pixels = x_N3HW.sub(fit.shift).div(fit.scale).round().clamp(0, 255).byte()
        write_mosaic(pixels.permute(0, 2, 3, 1).cpu().numpy(), self.folder.mosaic)


class _Keeper:
    """Writes down what a run comes to while it goes on."""

    def __init__(self, run: _Run, fit: Fit, start: Start, checkpoints: Checkpoints, steps: int, stop: Stop) -> None:
        self.run, self.fit, self.start, self.checkpoints, self.steps = run, fit, start, checkpoints, steps
        self.stop = stop
        self.saved = time.monotonic()

    def after_step(self, step: Step) -> None:
        self.run.listener.step(step)
        self.leave_if_asked()
        if time.monotonic() - self.saved > CHECKPOINT_SECONDS:
            self.checkpoint()

    def after_epoch(self, epoch: Epoch, logits_NK: Array, is_best: bool) -> None:
        # the checkpoint comes last: without it the epoch is run again, to the same bits
        if is_best:
            self.write_best(epoch)
        self.run.folder.add_epoch(epoch)
        self.checkpoint(is_best)
        self.run.listener.epoch(epoch, is_best)

    def leave_if_asked(self) -> None:
        """End with a checkpoint where a signal asked for it."""
        if not self.stop.wanted():
            return
        self.checkpoint()
        at = self.fit.at
        self.run.listener.said(f"Saved at step {at.epoch * self.steps + at.step}. The same command goes on from here.")
        self.stop.leave()

    def checkpoint(self, is_best: bool = False) -> None:
        at = self.fit.at
        self.checkpoints.save(at.epoch * self.steps + at.step, *self.fit.state(), best=is_best)
        self.saved = time.monotonic()

    def write_best(self, epoch: Epoch) -> None:
        config, recipe = self.start.config, self.run.recipe
        results = {"top1": epoch.top1, "top5": epoch.top5}
        dataset = recipe.dataset or Path(recipe.photos).name
        ours = {**config.dla, "dataset": dataset, "recipe": _shareable(recipe), "results": results}
        weights = half_precision(self.fit.stored().state_dict())
        write_folder(self.run.folder.best, weights, replace(config, dla=ours))
        self.run.folder.tell(best={"epoch": epoch.epoch, **results})


def _shareable(recipe: Recipe) -> dict[str, Any]:
    """The recipe as it may go into a model folder: where files lay is nobody else's business."""
    settings = asdict(recipe)
    del settings["photos"]
    for key in ("model", "scores"):
        if settings["distill"][key]:
            settings["distill"][key] = Path(settings["distill"][key]).name
    if Path(recipe.model).exists():
        settings["model"] = Path(recipe.model).name
    return settings


def photo_cache() -> Path:
    """Where decoded photos are kept on disk: under DLA_CACHE, or the user's cache folder."""
    return Path(os.environ.get("DLA_CACHE") or user_cache_path("dla")) / "photos"


def _summary(splits: Splits) -> dict[str, Any]:
    return {
        "train": len(splits.train),
        "val": len(splits.val),
        "classes": len(splits.train.class_ids),
        "how": splits.how,
        "left_out": len(splits.left_out),
    }


def _best(facts: Mapping[str, Any]) -> str:
    best = facts["best"]
    return f"best {best['top1']:.1%} top-1, {best['top5']:.1%} top-5, epoch {best['epoch']}"


def _gpus(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []


def _circumstances(device: torch.device) -> dict[str, Any]:
    """What the bits of a run depend on besides its recipe and its photos."""
    packages = ("dla", "torch", "numpy", "pillow")
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {
            "device": str(device),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
    }
