"""`dla train` from Python: `train(data, recipe, output)`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dla.data.open import Split, open_splits
from dla.errors import UsageError
from dla.images.labels import imagenet_classes
from dla.images.prepare import Preprocessing
from dla.nets.build import build
from dla.nets.table import IMAGENET_MEAN, IMAGENET_STD
from dla.recipes.schema import Recipe
from dla.verbs.train.batches import decode_all
from dla.verbs.train.fit import Epoch, Fit
from dla.verbs.train.lock import run_lock
from dla.weights.folder import ModelConfig, half_precision, write_folder
from dla.weights.load import load_state

__all__ = ["Listener", "train"]


@dataclass(frozen=True)
class Listener:
    """What the command line shows of a run; each is called with plain values."""

    said: Callable[[str], None] = lambda text: None
    epoch: Callable[[Epoch], None] = lambda epoch: None
    step: Callable[[int, int, int, float], None] = lambda epoch, step, steps, loss: None


def train(
    data: str | Path,
    recipe: Recipe,
    output: str | Path,
    *,
    workers: int = 2,
    device: str = "cpu",
    listener: Listener | None = None,
) -> Path:
    """Train a network by `recipe` on the splits of `data`; the model folder is `output`/best.

    A run that was stopped goes on from its newest checkpoint when it is called again with the same arguments.

    Raises:
        UsageError: `output` holds a run with another recipe, or one in progress.
        UnavailableError: the data cannot be had.
    """
    with run_lock(Path(output)):
        return _train(Path(data), recipe, Path(output), workers, torch.device(device), listener or Listener())


def _train(data: Path, recipe: Recipe, folder: Path, workers: int, device: torch.device, listener: Listener) -> Path:
    _claim(folder, recipe)
    splits = open_splits(data, seed=recipe.seed)
    train_split, val_split = splits.train, splits.val
    for note in splits.notes:
        listener.said(note)
    listener.said(f"{len(train_split):,} train, {len(val_split):,} val, {len(train_split.class_ids)} classes")
    side = (recipe.val_size, recipe.val_size)
    preprocessing = Preprocessing(side, 1.0, "center", "bilinear", IMAGENET_MEAN, IMAGENET_STD)

    torch.manual_seed(recipe.seed)
    # the classifier starts small: the published rule gives it a spread of sqrt(2 / classes), far too much for a few
    model = build(recipe.model, num_classes=0).reset_classifier(len(train_split.class_ids))
    fit = Fit(model, recipe, preprocessing, folder, device, listener.said)
    if fit.resume():
        listener.said(f"goes on at epoch {fit.epoch + 1}, step {fit.step}")
    decoded = [(decode_all(split, workers), split.targets_N) for split in (train_split, val_split)]
    epochs: list[Epoch] = []

    def report(epoch: Epoch) -> None:
        epochs.append(epoch)
        with (folder / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(asdict(epoch)) + "\n")
        listener.epoch(epoch)

    fit.run(decoded[0], decoded[1], workers, report, listener.step)
    weights = half_precision(fit.average.module.state_dict())
    load_state(fit.average.module, weights)  # the figures are those of the weights as they are stored
    results = fit.validate(decoded[1], workers)
    write_folder(folder / "best", weights, model_config(recipe, train_split, preprocessing, results))
    return folder / "best"


def _claim(folder: Path, recipe: Recipe) -> None:
    """See that the run's folder belongs to the same recipe."""
    settings = folder / "recipe.json"
    wanted = json.dumps(asdict(recipe), indent=1) + "\n"
    if settings.exists() and settings.read_text() != wanted:
        raise UsageError(f"{folder} holds a run with another recipe ({settings}). Choose another --output")
    settings.write_text(wanted)


def model_config(recipe: Recipe, split: Split, preprocessing: Preprocessing, results: dict[str, float]) -> ModelConfig:
    """What the model folder says of itself. WordNet ids get WordNet's names."""
    names = {c.class_id: c.label for c in imagenet_classes()}
    settings = asdict(recipe)
    if recipe.distill.scores:  # where the file lay is nobody else's business
        settings["distill"]["scores"] = Path(recipe.distill.scores).name
    return ModelConfig(
        architecture=recipe.model,
        num_classes=len(split.class_ids),
        label_names=split.class_ids,
        label_descriptions={c: names.get(c, c) for c in split.class_ids},
        model_args={},
        pretrained_cfg={**preprocessing.to_config(), "num_classes": len(split.class_ids)},
        dla={
            "task": "classify",
            "preprocessing": {"exif": preprocessing.exif},
            "dataset": recipe.dataset,
            "licence": recipe.licence,
            "recipe": settings,
            "results": results,
        },
    )
