"""The model folder: `config.json` describes the network, `model.safetensors` holds its weights.

timm's keys are at the root of `config.json`, ours under the root key `dla`. No value of a config is ever used as a
path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla.errors import DamagedError, DlaError, UnavailableError, UsageError, nearest
from dla.models.registry import DOWN_RATIOS, GLOBAL_POOLS, TABLE, UPSAMPLINGS
from dla.storage import files
from dla.storage.files import JsonObject, Kind, json_kind, json_shown

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Names of weight files in folders, in timm's order of preference; the hub has one of the first three.
INDEX = f"{WEIGHTS}.index.json"  # of weights in several files
WEIGHT_NAMES = (WEIGHTS, "pytorch_model.bin", INDEX, "pytorch_model.pth", "model.pth")
FORMAT = 1
# What a network of each task is called, and its command.
COMMANDS = {
    "classify": ("classification", "dla predict"),
    "segment": ("segmentation", "dla segment"),
    "edges": ("boundary", "dla edges"),
}
USUAL_SHORT_SIDE = 360  # of photos, in pixels, where a dense network takes any
MOST_CLASSES, MOST_CHANNELS = 1_000_000, 65_536  # limits that keep a forged config from allocating terabytes

# The options of `DLA` that a config may set: type, allowed values for messages, and their check.
_MODEL_ARGS: dict[str, tuple[Kind, str, Callable[[Any], bool]]] = {
    "in_chans": (int, f"1 to {MOST_CHANNELS}", lambda count: 1 <= count <= MOST_CHANNELS),
    "output_stride": (int, "8, 16, 32", lambda stride: stride in (8, 16, 32)),
    "global_pool": (str, ", ".join(map(repr, GLOBAL_POOLS)), lambda pool: pool in GLOBAL_POOLS),
    "drop_rate": ((int, float), "from 0 to below 1", lambda rate: 0 <= rate < 1),
    "drop_path_rate": ((int, float), "from 0 to below 1", lambda rate: 0 <= rate < 1),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The content of `config.json`.

    `label_names` are the class ids in the order of the network's outputs, `label_descriptions` their readable names.
    `model_args` are the network's options, `pretrained_cfg` is timm's record of the preprocessing, `dla` holds our own
    fields, without the file's format version.
    """

    architecture: str
    num_classes: int
    label_names: tuple[str, ...] | None = None
    label_descriptions: Mapping[str, str] | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    dla: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_chans(self) -> int:
        """Channels of the input, from `model_args`, else `pretrained_cfg`, else 3."""
        size = self.pretrained_cfg.get("input_size") or (3,)
        return int(self.model_args.get("in_chans", size[0]))

    @property
    def exif(self) -> Any:
        """How the EXIF orientation of photos is treated: "apply" by default."""
        return (self.dla.get("preprocessing") or {}).get("exif", "apply")

    @property
    def task(self) -> str:
        """What the network answers: "classify" (by default), "segment" or "edges"."""
        return str(self.dla.get("task") or "classify")

    @property
    def photo_size(self) -> tuple[int, int]:
        """The (height, width) of a usual input: of a dense network, a photo of 4 to 3 with the short side it wants."""
        if self.task == "classify":
            _, height, width = self.pretrained_cfg.get("input_size") or (3, 224, 224)
            return height, width
        short = self.dla.get("short_side") or USUAL_SHORT_SIDE
        return short, round(short * 4 / 3)

    @property
    def temperature(self) -> float:
        """What logits are divided by before the softmax; 1 by default."""
        return float(self.dla.get("temperature") or 1)

    def to_json(self) -> str:
        """Return the text of `config.json`; equal configs give equal text.

        Raises:
            UsageError: if a value cannot be written as JSON.
        """
        values = {name: getattr(self, name) for name in ModelConfig.__slots__}
        root = {name: dict(v) if isinstance(v, Mapping) else v for name, v in values.items() if v is not None}
        root["dla"] = {"format": FORMAT, **self.dla}
        if not self.model_args:
            del root["model_args"]
        try:
            text = json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            text.encode()
        except (TypeError, ValueError) as error:
            raise UsageError(f"the config of {self.architecture} cannot be written as JSON: {error}.") from error
        return text

    @classmethod
    def from_mapping(cls, mapping: object, where: str) -> ModelConfig:
        """Return the config of a parsed `config.json`, with every field checked; `where` names the file in messages.

        Raises:
            DamagedError: if a field is missing, of the wrong type, or contradicts another.
        """
        if not isinstance(mapping, dict):
            raise DamagedError(f"{where}: this is {json_kind(mapping)}, not an object with the field architecture.")
        older = "pretrained_cfg" not in mapping
        root = JsonObject(_newer_form(mapping) if older else mapping, where)
        cfg = replace(root.object("pretrained_cfg"), inside="") if older else root.object("pretrained_cfg")
        architecture = _architecture(root)
        holder = cfg if "num_classes" in cfg.fields.keys() - root.fields.keys() else root
        allowed = f"0 to {MOST_CLASSES}"
        count: int = holder.get("num_classes", int, allowed, lambda count: 0 <= count <= MOST_CLASSES)
        return cls(
            architecture,
            count,
            _label_names(root, cfg, count),
            _label_descriptions(root, cfg),
            _model_args(root, count),
            _pretrained_cfg(cfg),
            _ours(root.object("dla")),
        )


def _newer_form(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config in timm's older form, with the record of the preprocessing at the root, in the newer one.

    As timm's `_parse_model_cfg`, which calls `labels` `label_names`; `global_pool` is the network's, as it was then.
    """
    ours = ("architecture", "num_features", "model_args", "dla")
    cfg = {name: value for name, value in fields.items() if name not in ours}
    if "labels" in cfg:
        cfg["label_names"] = cfg.pop("labels")
    newer = {name: fields[name] for name in ("architecture", "model_args", "dla") if name in fields}
    if cfg.get("global_pool") is not None and not newer.get("model_args"):
        newer["model_args"] = {"global_pool": cfg["global_pool"]}
    return newer | {"pretrained_cfg": cfg}


def _architecture(root: JsonObject) -> str:
    name: str = root.get("architecture", str, "the name of a network, such as dla60")
    if name not in TABLE:
        near = nearest(name, TABLE)
        hint = f"Nearest: {', '.join(near)}." if near else "All: dla models"
        raise root.error(f'architecture is "{name}", which is not a DLA network. {hint}')
    return name


def _label_names(root: JsonObject, cfg: JsonObject, num_classes: int) -> tuple[str, ...] | None:
    names = root.fields.get("label_names", cfg.fields.get("label_names"))
    if names is None:
        return None
    if isinstance(names, dict):  # timm also writes {"0": name, ...}
        names = [names.get(str(i)) for i in range(num_classes)] if len(names) == num_classes else list(names)
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise root.error("label_names must hold one text per class.")
    if len(names) != num_classes:
        raise root.error(f"label_names has {len(names)} entries for num_classes {num_classes}.")
    if len(set(names)) != len(names):
        twice = next(n for i, n in enumerate(names) if n in names[:i])
        raise root.error(f'label_names has "{twice}" twice; names must be unique.')
    return tuple(names)


def _label_descriptions(root: JsonObject, cfg: JsonObject) -> dict[str, str] | None:
    key = "label_descriptions"
    texts = root.get(key, dict, "an object", default=None) or cfg.get(key, dict, "an object", default=None)
    if texts is None:
        return None if root.fields.get(key) is None else {}
    if not all(isinstance(text, str) for text in texts.values()):
        raise root.error(f"{key} must hold only texts.")
    return dict(texts)


def _model_args(root: JsonObject, num_classes: int) -> dict[str, Any]:
    args = root.object("model_args")
    if args.fields.get("num_classes", num_classes) != num_classes:  # timm repeats it here
        again = json_shown(args.fields["num_classes"])
        raise root.error(f"model_args.num_classes is {again} but num_classes is {num_classes}.")
    names = [name for name in args.fields if name != "num_classes"]
    if unknown := [name for name in names if name not in _MODEL_ARGS]:
        raise root.error(f"model_args.{unknown[0]} is not an option of the network. Allowed: {', '.join(_MODEL_ARGS)}.")
    return {name: args.get(name, *_MODEL_ARGS[name]) for name in names}


def _pretrained_cfg(cfg: JsonObject) -> dict[str, Any]:
    cfg.get("input_size", list, "[channels, height, width]", _is_size, default=None)
    cfg.get("crop_pct", (int, float), "a number above 0", lambda crop: crop > 0, default=None)
    return dict(cfg.fields)


def _is_size(size: list[Any]) -> bool:
    return len(size) == 3 and all(type(n) is int and 1 <= n <= MOST_CHANNELS for n in size)


def _ours(dla: JsonObject) -> dict[str, Any]:
    version = dla.fields.get("format", FORMAT)
    if version != FORMAT or isinstance(version, bool):
        raise dla.error(
            f"dla.format is {json_shown(version)}, this version of dla reads {FORMAT}. Install a newer dla."
        )
    dla.object("preprocessing")
    dla.get("task", str, ", ".join(COMMANDS), lambda task: task in COMMANDS, default=None)
    dla.get("down_ratio", int, ", ".join(map(str, DOWN_RATIOS)), lambda ratio: ratio in DOWN_RATIOS, default=None)
    dla.get("up", str, ", ".join(UPSAMPLINGS), lambda up: up in UPSAMPLINGS, default=None)
    dla.get("short_side", int, "1 to 65536", lambda side: 1 <= side <= 65_536, default=None)
    dla.get("threshold", (int, float), "above 0, to 1", lambda t: 0 < t <= 1, default=None)
    dla.get("palette", list, "a colour [red, green, blue] for each class", _are_colors, default=None)
    dla.get("temperature", (int, float), "a number from 0.01 to 100", lambda t: 0.01 <= t <= 100, default=None)
    return {name: value for name, value in dla.fields.items() if name != "format"}


def _are_colors(colors: list[Any]) -> bool:
    return all(
        isinstance(color, list) and len(color) == 3 and all(type(n) is int and 0 <= n <= 255 for n in color)
        for color in colors
    )


def check_task(config: ModelConfig, origin: str, *tasks: str) -> None:
    """Check that a network is for one of these tasks.

    Raises:
        UsageError: it is for another; the message names the command that takes it.
    """
    if config.task not in tasks:
        what, command = COMMANDS[config.task]
        raise UsageError(f"{origin} is a {what} network. Use: {command}")


def parse_config(data: bytes, where: str) -> ModelConfig:
    """Return the config in the bytes of a `config.json`; `where` names the file in messages.

    Raises:
        DamagedError: if it is not JSON, or not the config of a network.
    """
    mapping = files.parse_json(data, where)
    try:
        json.dumps(mapping, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded or printed
    except UnicodeEncodeError as error:
        raise DamagedError(f"{where} is not valid JSON: {error}.") from error
    return ModelConfig.from_mapping(mapping, where)


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Return the config of a model folder.

    Raises:
        UnavailableError: if there is no such folder, or it has no `config.json`.
        DamagedError: if the config is damaged.
    """
    folder = Path(folder)
    return parse_config(read_config_bytes(folder), str(folder / CONFIG))


def read_config_bytes(folder: Path) -> bytes:
    """Return the bytes of a model folder's config; raises as `read_config`."""
    path = folder / CONFIG
    try:
        return files.read_bytes(path)
    except UnavailableError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            hint = f"A model folder holds {CONFIG} and {WEIGHTS}; for a bare file, pass its own path."
            raise UnavailableError(f"{error} {hint}") from error
        raise


def write_folder(folder: str | os.PathLike[str], model_state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write a model folder, or overwrite an existing one. Equal weights and configs give equal files.

    Each file is written atomically, and a full disk changes nothing.

    Raises:
        UsageError: if the folder holds anything but a model, or the config is invalid.
        DlaError: if the disk is full or not writable.
    """
    import safetensors.torch  # here, because reading a config needs no torch

    folder = Path(folder)
    text = config.to_json().encode()
    try:
        parse_config(text, f"the config for {folder}")
    except DamagedError as error:
        raise UsageError(str(error)) from error
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model_state.items()}
    new = not folder.exists()
    try:
        _refuse_foreign(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The config goes first: what a crash leaves is still recognized as a model folder and can be overwritten.
        weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
        files.write_files({folder / CONFIG: text, folder / WEIGHTS: weights})
    except OSError as error:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise DlaError(f"{folder} cannot be written: {error.strerror or error}.") from error


def set_fields(folder: str | os.PathLike[str], **fields: Any) -> None:
    """Set fields under `dla` in a model folder's config and leave all others unchanged, unknown ones too.

    Raises:
        UnavailableError: if it is not a model folder.
        DamagedError: if the config is damaged.
        DlaError: if it cannot be written.
    """
    path = Path(folder) / CONFIG
    data = read_config_bytes(Path(folder))
    parse_config(data, str(path))
    root = files.parse_object(data, str(path))
    try:
        root["dla"] = {"format": FORMAT, **(root.get("dla") or {}), **fields}
        text = json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        files.write_files({path: text.encode()})
    except OSError as error:
        raise DlaError(f"{path} cannot be written: {error.strerror or error}.") from error


def is_unfinished(folder: Path) -> bool:
    """Return whether a folder is empty, or holds only what a killed `write_folder` left: its config comes first."""
    names = {path.name for path in folder.iterdir()}
    left = set(filter(files.is_leftover, names))
    return names == left or (bool(left) and names - left == {CONFIG})


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file. A model needs a folder of its own.")
    if is_unfinished(folder):
        return
    try:
        read_config(folder)
    except UnavailableError as error:
        raise UsageError(
            f"{folder} is not empty and not a model folder, so it was not changed. Try: a new or empty folder."
        ) from error


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in float16; batch-norm statistics stay float32 and counters integers.

    Raises:
        UsageError: if a weight is too large for float16.
    """
    half = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            half[name] = tensor
        elif name.endswith(("running_mean", "running_var")):
            half[name] = tensor.float()
        else:
            half[name] = tensor.half()
            if tensor.isfinite().all() and not half[name].isfinite().all():
                raise UsageError(f"{name} has values up to {tensor.abs().max():.3g}; float16 ends at 65504.")
    return half
