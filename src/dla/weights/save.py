"""Write the network of any training loop as a model folder, with its class names and preprocessing."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from dla.errors import DamagedError, UnknownNameError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.models.build import build
from dla.models.dla import DLA
from dla.models.registry import TABLE
from dla.options import CropMode, Exif, Interpolation
from dla.weights.identify import PREPROCESSING
from dla.weights.keys import FIRST_CONV, HEAD, PREFIXES, candidate_networks, plain_names, shapes_of
from dla.weights.load import load_state
from dla.weights.model_folder import ModelConfig, is_unfinished, write_folder

Labels = Sequence[str] | Mapping[str, str]
# timm's names, and ours for the EXIF orientation
FIELDS = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std", "exif")


def save(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    labels: Labels | None,
    preprocessing: Preprocessing | Mapping[str, Any],
    force: bool = False,
) -> Path:
    """Write a network as a model folder, which `dla predict`, `dla export`, `dla.load` and timm read.

    The network is built again from what is written and compared, so that the folder gives the network's own answers.

    Args:
        model: a network of `dla.create_model` or a `dla.DLA` like one, in any mode and on any device; it may be wrapped
            for data parallelism, compilation or averaging.
        folder: a new or empty folder.
        labels: the class of each output, in their order: as a list of names, such as those of the training folders, or
            as a mapping from names to readable labels. None only for a network without classes.
        preprocessing: how photos must be prepared: a `Preprocessing`, or fields under timm's names, such as
            `resolve_data_config` returns: input_size (a side, (height, width) or (3, height, width)), crop_pct,
            crop_mode, interpolation, mean, std; and exif ("apply" or "ignore"). Fields that are left out are those of
            the network's `pretrained_cfg`.
        force: replace the model in an existing folder.

    Returns:
        The path of the folder. A warning says if timm cannot read it, because the output stride is not 32.

    Raises:
        UsageError: the network is none that a name can build, the labels are not one per class, a field of the
            preprocessing is not allowed, or the folder exists.
        DlaError: the folder cannot be written.
    """
    path = Path(os.path.expanduser(folder))
    check_free(path, force)
    net = _unwrapped(model)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor
             for name, tensor in plain_names(net.state_dict()).items()}  # fmt: skip
    shapes = shapes_of(state)
    classes = shapes.get(f"{HEAD}weight", (0,))[0]
    args = {
        "in_chans": shapes.get(FIRST_CONV, (0, 3))[1],
        "output_stride": net.feature_info[-1]["reduction"],
        "global_pool": net.global_pool.pool_type,
    }
    architecture = _architecture(net, state, classes, args)
    cfg = TABLE[architecture].pretrained_cfg().to_dict() | net.pretrained_cfg
    config = ModelConfig(
        architecture, classes, model_args=args, pretrained_cfg={key: cfg[key] for key in PREPROCESSING},
        dla={"task": "classify"},
    )  # fmt: skip
    if labels is None and classes:
        raise UsageError(f"labels is None, but the network has {classes} classes. Give their names, in output order")
    write_folder(path, state, described(config, labels, preprocessing))
    if args["output_stride"] != 32:
        warnings.warn(f"output_stride is {args['output_stride']}: timm cannot read {path}", stacklevel=2)
    return path


def described(
    config: ModelConfig, labels: Labels | None, preprocessing: Preprocessing | Mapping[str, Any] | None
) -> ModelConfig:
    """Return a config with these labels and this preprocessing; None keeps those of the config.

    Raises:
        UsageError: the labels are not one per class, or a field of the preprocessing is not allowed.
    """
    if labels is not None:
        config = _labelled(config, labels)
    if preprocessing is None:
        return config
    if not isinstance(preprocessing, Preprocessing):
        preprocessing = _preprocessing(config, preprocessing)
    cfg = preprocessing.to_config() | {"input_size": (config.in_chans, *preprocessing.size)}
    ours = {**config.dla, "preprocessing": {"exif": preprocessing.exif}}
    return dataclasses.replace(config, pretrained_cfg={**config.pretrained_cfg, **cfg}, dla=ours)


def _labelled(config: ModelConfig, labels: Labels) -> ModelConfig:
    names = tuple(labels)
    if isinstance(labels, str) or not all(isinstance(name, str) for name in names):
        raise UsageError("labels must be a list of texts, one per class")
    if len(names) != config.num_classes:
        raise UsageError(f"there are {len(names)} labels, but the network has {config.num_classes} classes")
    described = dict(labels) if isinstance(labels, Mapping) else {name: name for name in names}
    return dataclasses.replace(config, label_names=names, label_descriptions=described)


def _preprocessing(config: ModelConfig, fields: Mapping[str, Any]) -> Preprocessing:
    for name in fields:
        if name not in FIELDS:
            raise UnknownNameError("field of a preprocessing", name, FIELDS, see=", ".join(FIELDS))
    given = {name: value for name, value in fields.items() if value is not None}
    if "input_size" in given:
        size = given.pop("input_size")
        given["size"] = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    for name, allowed in (("crop_mode", CropMode), ("interpolation", Interpolation), ("exif", Exif)):
        if given.get(name) not in (None, *get_args(allowed)):
            raise UsageError(f"{name} is {given[name]!r}. Allowed: {', '.join(get_args(allowed))}")
    height, width = (config.pretrained_cfg.get("input_size") or (3, 224, 224))[1:]
    own = Preprocessing.from_config({**config.pretrained_cfg, "input_size": (3, height, width)}, config.exif)
    return dataclasses.replace(own, **given)


def check_free(path: Path, force: bool) -> None:
    """Check that a file or folder can be created at `path`.

    Raises:
        UsageError: something is there and `force` is false, or a file is where a folder must be.
    """
    above = next((parent for parent in path.parents if os.path.lexists(parent)), path.parent)
    if os.path.lexists(above) and not above.is_dir():
        raise UsageError(f"{above} is a file, so nothing can be written to {path}")
    if os.path.lexists(path) and not force and not (path.is_dir() and is_unfinished(path)):
        raise UsageError(f"{path} exists already. Try: another name, or --force to replace it")


def _unwrapped(model: nn.Module) -> DLA:
    net: Any = model
    while not isinstance(net, DLA):
        inner = [getattr(net, prefix.strip("."), None) for prefix in PREFIXES]
        net = next((module for module in inner if isinstance(module, nn.Module)), None)
        if net is None:
            raise UsageError(f"model is a {type(model).__name__}. Allowed: a network of dla.create_model")
    return net


def _architecture(net: DLA, state: Mapping[str, Tensor], classes: int, args: Mapping[str, Any]) -> str:
    """Return the name that builds this network.

    Raises:
        UsageError: no name does.
    """
    own = str(net.pretrained_cfg.get("architecture"))
    names = [own] if own in TABLE else candidate_networks(shapes_of(state))
    reason = "its tensors fit none of dla.list_models()"
    for name in names:
        with torch.device("meta"):
            twin = build(name, num_classes=classes, **args)
        try:
            load_state(twin, state, where="the model")
        except DamagedError as error:
            reason = str(error)
            continue
        if _answer_alike(net, twin):
            return name
        reason = f"{name} with the same weights gives other answers: layers or options were changed"
    raise UsageError(f"this network cannot be built from a name, so a folder cannot describe it: {reason}")


def _answer_alike(net: DLA, twin: DLA) -> bool:
    """Return whether two networks compute the same in evaluation mode; `net` is left in its mode."""
    like = next(net.parameters())
    x_NCHW = torch.rand(2, net.in_chans, 64, 64, generator=torch.Generator().manual_seed(0)).to(like)
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            ours, theirs = net(x_NCHW), twin.to(like).eval()(x_NCHW)
    finally:
        for module, mode in modes:
            module.training = mode
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max())
