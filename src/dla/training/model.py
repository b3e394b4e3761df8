"""The initial network of a run: untrained or pretrained, with a classifier for the classes and frozen stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from dla.data.pair_split import PairSplit
from dla.errors import UsageError
from dla.images.labels import imagenet_classes
from dla.images.preprocessing import Preprocessing
from dla.models.dense import Dense
from dla.models.dla import DLA
from dla.training.recipe import Recipe
from dla.weights.create import create_model
from dla.weights.identify import task_of
from dla.weights.load import load_dense, load_model
from dla.weights.model_folder import ModelConfig, check_task
from dla.weights.spec import open_files

STAGES = ("stem", "level0", "level1", "level2", "level3", "level4", "level5")


@dataclass(frozen=True)
class InitialModel:
    """A network before its first step, with its preprocessing, its model-folder config, and notes for the log."""

    network: DLA | Dense
    preprocessing: Preprocessing
    config: ModelConfig
    notes: tuple[str, ...]


def build_initial(recipe: Recipe, class_ids: tuple[str, ...]) -> InitialModel:
    """Build the network of a recipe for these classes.

    Raises:
        UnknownNameError, UnavailableError, DamagedError: as by `dla.load`.
    """
    options: dict[str, Any] = {
        "drop_rate": recipe.regular.drop_rate,
        "drop_path_rate": recipe.regular.drop_path_rate,
    }
    if recipe.pretrained:
        network, config, notes = _load_pretrained(recipe.model, class_ids, options)
    else:
        # reset_classifier starts small: the published rule, a spread of sqrt(2 / classes), is too much for a few
        network = create_model(recipe.model, num_classes=0, **options).reset_classifier(len(class_ids))
        cfg = dict(network.pretrained_cfg)
        config = ModelConfig(str(cfg["architecture"]), len(class_ids), pretrained_cfg=cfg)
        notes = (f"untrained {config.architecture} for {len(class_ids)} classes",)
    preprocessing = _preprocessing(recipe, config)
    freeze(network, recipe.freeze)
    if recipe.compute.checkpointing:
        network.set_grad_checkpointing()
    return InitialModel(network, preprocessing, _model_config(config, recipe, class_ids, preprocessing), notes)


def _load_pretrained(
    source: str, class_ids: tuple[str, ...], options: dict[str, Any]
) -> tuple[DLA, ModelConfig, tuple[str, ...]]:
    loaded = load_model(source, **options)
    if loaded.config.label_names == class_ids:
        return loaded.model, loaded.config, (f"{loaded.origin}, which has these classes",)
    loaded.model.reset_classifier(len(class_ids))
    note = f"{loaded.origin}, with a new classifier for {len(class_ids)} classes"
    return loaded.model, loaded.config, (*loaded.report.notes, note)


def _preprocessing(recipe: Recipe, config: ModelConfig) -> Preprocessing:
    """Return the network's preprocessing with the recipe's settings applied."""
    own = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    settings: dict[str, Any] = {
        "size": recipe.input.val_size and (recipe.input.val_size, recipe.input.val_size),
        "crop_pct": recipe.input.crop_pct,
        "crop_mode": recipe.input.crop_mode,
        "interpolation": recipe.input.interpolation,
    }
    return replace(own, **{k: v for k, v in settings.items() if v is not None})


def _model_config(
    config: ModelConfig, recipe: Recipe, class_ids: tuple[str, ...], preprocessing: Preprocessing
) -> ModelConfig:
    """Return the config of the model folder, without results. Classes named by WordNet ids get WordNet's labels."""
    names = {c.class_id: c.label for c in imagenet_classes()}
    license_ = recipe.license or (str(config.dla.get("license") or "") if recipe.pretrained else "")
    ours: dict[str, Any] = {"task": "classify", "preprocessing": {"exif": preprocessing.exif}}
    ours |= {"dataset": recipe.dataset} | ({"license": license_} if license_ else {})
    if recipe.pretrained:
        ours["starts_from"] = recipe.model
    model_args = {k: v for k, v in config.model_args.items() if k in ("output_stride", "global_pool", "in_chans")}
    return ModelConfig(
        architecture=config.architecture,
        num_classes=len(class_ids),
        label_names=class_ids,
        label_descriptions={c: names.get(c, c) for c in class_ids},
        model_args=model_args,
        pretrained_cfg={**preprocessing.to_config(), "num_classes": len(class_ids)},
        dla=ours,
    )


def build_dense(recipe: Recipe, split: PairSplit) -> InitialModel:
    """Build the dense network of a recipe for the classes of a split.

    Raises:
        UnknownNameError, UnavailableError, DamagedError: as by `dla.load`.
        UsageError: the pretrained network is of another task, or decodes to another stride.
    """
    class_ids = split.class_ids
    options: dict[str, Any] = {"drop_path_rate": recipe.regular.drop_path_rate}
    if recipe.pretrained:
        network, config, notes = _load_pretrained_dense(recipe, class_ids, options)
    else:
        backbone = create_model(recipe.model, num_classes=0, **options)
        network = Dense.over(backbone, len(class_ids), recipe.down_ratio)
        config = ModelConfig(str(backbone.pretrained_cfg["architecture"]), 0, pretrained_cfg=backbone.pretrained_cfg)
        notes = (f"untrained {config.architecture}", f"decoder to stride {recipe.down_ratio}")
    if recipe.loss.auxiliary:
        network.add_auxiliary()
    freeze(network, recipe.freeze)
    if recipe.compute.checkpointing:
        network.set_grad_checkpointing()
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    own = _model_config(config, recipe, class_ids, preprocessing)
    dense = {"task": recipe.task, "down_ratio": recipe.down_ratio, "palette": split.classes and split.classes.colors,
             "short_side": split.short_side()}  # fmt: skip
    dense |= {"up": config.dla["up"]} if "up" in config.dla else {}
    own = replace(own, dla={**own.dla, **dense})
    return InitialModel(network, preprocessing, own, notes)


def _load_pretrained_dense(
    recipe: Recipe, class_ids: tuple[str, ...], options: dict[str, Any]
) -> tuple[Dense, ModelConfig, tuple[str, ...]]:
    """Load a dense network, with a new classifier if its classes differ, or a classifier as its backbone."""
    files = open_files(recipe.model)
    if task_of(files) == "classify":
        backbone = load_model(files, num_classes=0, **options)
        network = Dense.over(backbone.model, len(class_ids), recipe.down_ratio)
        return network, backbone.config, (*backbone.report.notes, f"decoder to stride {recipe.down_ratio}")
    loaded = load_dense(files, **options)
    network = loaded.model
    check_task(loaded.config, loaded.origin, recipe.task)
    if network.down_ratio != recipe.down_ratio:
        raise UsageError(
            f"{loaded.origin} decodes to stride {network.down_ratio}, but down_ratio is {recipe.down_ratio}. "
            f"Give --down-ratio {network.down_ratio}"
        )
    if loaded.config.label_names == class_ids:
        return network, loaded.config, (f"{loaded.origin}, which has these classes",)
    network.reset_classifier(len(class_ids), loaded.config.dla.get("up", "bilinear"))
    return network, loaded.config, (f"{loaded.origin}, with a new classifier for {len(class_ids)} classes",)


def freeze(network: DLA | Dense, through: str) -> None:
    """Freeze the parameters of the stem and the levels up to `through`."""
    for stage in frozen_stages(network, through):
        stage.requires_grad_(False)


def frozen_stages(network: DLA | Dense, through: str) -> tuple[nn.Module, ...]:
    """Return the stem and the levels up to `through`."""
    return () if through == "none" else network.stages()[: STAGES.index(through) + 1]


def train_mode(network: DLA | Dense, frozen: str) -> None:
    """Set training mode, except for frozen stages, whose batch-norm statistics stay unchanged."""
    network.train()
    for stage in frozen_stages(network, frozen):
        stage.eval()
