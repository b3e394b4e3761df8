"""The model folder: `config.json` says what the network is, `model.safetensors` holds its weights.

timm's keys stand at the root of `config.json`, everything of ours under one root key `dla`. No value of a
config is ever used as a path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dla.errors import DamagedError, DlaError, UnavailableError, UsageError, nearest
from dla.models.registry import GLOBAL_POOLS, TABLE
from dla.storage.files import write_files

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CONFIG",
    "FORMAT",
    "WEIGHTS",
    "ModelConfig",
    "half_precision",
    "parse_config",
    "read_config",
    "write_folder",
    "write_temperature",
]


CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
MOST_CLASSES, MOST_CHANNELS = 1_000_000, 65_536  # far beyond any use; keeps a forged config from asking for terabytes


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _is_temperature(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.01 <= value <= 100


# What a config may set: the constructor's options with plain values that the table's row does not settle.
_MODEL_ARGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "in_chans": (lambda v: _is_int(v, 1, MOST_CHANNELS), f"1 to {MOST_CHANNELS}"),
    "output_stride": (lambda v: _is_int(v, 8, 32) and v in (8, 16, 32), "8, 16, 32"),
    "global_pool": (lambda v: isinstance(v, str) and v in GLOBAL_POOLS, ", ".join(map(repr, GLOBAL_POOLS))),
    "drop_rate": (_is_rate, "from 0 to below 1"),
    "drop_path_rate": (_is_rate, "from 0 to below 1"),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What `config.json` says.

    `label_names` are the class ids in the order of the network's outputs, `label_descriptions` their readable
    names. `model_args` are the network's options, `pretrained_cfg` timm's record of the preprocessing, `dla` ours
    (the file's format version is not in it: it belongs to the file).
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
        """Channels of the input: what `model_args` says, else `pretrained_cfg`, else 3."""
        size = self.pretrained_cfg.get("input_size") or (3,)
        return int(self.model_args.get("in_chans", size[0]))

    @property
    def exif(self) -> Any:
        """What photos' EXIF orientation is to them: "apply", where nothing else is said."""
        return (self.dla.get("preprocessing") or {}).get("exif", "apply")

    @property
    def temperature(self) -> float:
        """What the network's scores are divided by for its probabilities; 1, where nothing else is said."""
        return float(self.dla.get("temperature") or 1)

    def to_json(self) -> str:
        """The text of `config.json`: equal configs give equal text.

        Raises:
            UsageError: a value that JSON has no word for.
        """
        root: dict[str, Any] = {"architecture": self.architecture, "num_classes": self.num_classes}
        if self.label_names is not None:
            root["label_names"] = self.label_names
        if self.label_descriptions is not None:
            root["label_descriptions"] = dict(self.label_descriptions)
        if self.model_args:
            root["model_args"] = dict(self.model_args)
        root["pretrained_cfg"] = dict(self.pretrained_cfg)
        root["dla"] = {"format": FORMAT, **self.dla}
        try:
            text = json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            text.encode()
        except (TypeError, ValueError) as error:
            raise UsageError(f"the config of {self.architecture} cannot be written as JSON: {error}.") from error
        return text

    @classmethod
    def from_mapping(cls, mapping: object, where: str) -> ModelConfig:
        """The config of a parsed `config.json`, every field checked; `where` names the file in messages.

        Raises:
            DamagedError: a field is missing, of another type than it should be, or contradicts another.
        """
        return _Reader(where).config(mapping)


@dataclass(frozen=True, slots=True)
class _Reader:
    where: str

    def fail(self, what: str) -> DamagedError:
        return DamagedError(f"{self.where}: {what}")

    def config(self, root: object) -> ModelConfig:
        if not isinstance(root, dict):
            raise self.fail(f"this is {_kind(root)}, not an object with the field architecture.")
        architecture = self.architecture(root)
        num_classes = self.num_classes(root)
        return ModelConfig(
            architecture,
            num_classes,
            self.label_names(root, num_classes),
            self.label_descriptions(root),
            self.model_args(root, num_classes),
            self.pretrained_cfg(root),
            self.ours(root),
        )

    def architecture(self, root: dict[str, Any]) -> str:
        name = root.get("architecture")
        if not isinstance(name, str):
            raise self.fail(f"architecture is {_kind(name)}. Allowed: the name of a network, such as dla60.")
        if name not in TABLE:
            near = nearest(name, TABLE)
            hint = f"Nearest: {', '.join(near)}." if near else "All: dla models"
            raise self.fail(f'architecture is "{name}", which is no DLA network. {hint}')
        return name

    def num_classes(self, root: dict[str, Any]) -> int:
        count = root.get("num_classes", self.mapping(root, "pretrained_cfg").get("num_classes"))
        if not _is_int(count, 0, MOST_CLASSES):
            raise self.fail(f"num_classes is {_show(count)}. Allowed: 0 to {MOST_CLASSES}.")
        return int(count or 0)

    def mapping(self, root: dict[str, Any], key: str) -> dict[str, Any]:
        value = root.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.fail(f"{key} is {_kind(value)}. Allowed: an object.")
        return value

    def label_names(self, root: dict[str, Any], num_classes: int) -> tuple[str, ...] | None:
        names = root.get("label_names", self.mapping(root, "pretrained_cfg").get("label_names"))
        if names is None:
            return None
        if isinstance(names, dict):  # timm also writes {"0": name, ...}
            names = [names.get(str(i)) for i in range(num_classes)] if len(names) == num_classes else list(names)
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise self.fail("label_names holds something else than one text for each class.")
        if len(names) != num_classes:
            raise self.fail(f"label_names has {len(names)} entries for num_classes {num_classes}.")
        if len(set(names)) != len(names):
            twice = next(n for i, n in enumerate(names) if n in names[:i])
            raise self.fail(f'label_names has "{twice}" twice; each class needs its own name.')
        return tuple(names)

    def label_descriptions(self, root: dict[str, Any]) -> dict[str, str] | None:
        key = "label_descriptions"
        if root.get(key) is None and self.mapping(root, "pretrained_cfg").get(key) is None:
            return None
        texts = self.mapping(root, key) or self.mapping(self.mapping(root, "pretrained_cfg"), key)
        if not all(isinstance(text, str) for text in texts.values()):
            raise self.fail(f"{key} holds something else than texts.")
        return dict(texts)

    def model_args(self, root: dict[str, Any], num_classes: int) -> dict[str, Any]:
        args = dict(self.mapping(root, "model_args"))
        again = args.pop("num_classes", num_classes)  # timm repeats it here
        if again != num_classes:
            raise self.fail(f"model_args.num_classes is {_show(again)} but num_classes is {num_classes}.")
        for name, value in args.items():
            if name not in _MODEL_ARGS:
                raise self.fail(f"model_args.{name} is no option of a network. Allowed: {', '.join(_MODEL_ARGS)}.")
            allowed, words = _MODEL_ARGS[name]
            if not allowed(value):
                raise self.fail(f"model_args.{name} is {_show(value)}. Allowed: {words}.")
        return args

    def pretrained_cfg(self, root: dict[str, Any]) -> dict[str, Any]:
        cfg = self.mapping(root, "pretrained_cfg")
        size = cfg.get("input_size")
        good = isinstance(size, list) and len(size) == 3 and all(_is_int(n, 1, MOST_CHANNELS) for n in size)
        if size is not None and not good:
            raise self.fail(f"pretrained_cfg.input_size is {_show(size)}. Allowed: [channels, height, width].")
        crop = cfg.get("crop_pct", 1)
        if crop is not None and not (isinstance(crop, int | float) and crop > 0):
            raise self.fail(f"pretrained_cfg.crop_pct is {_show(crop)}. Allowed: a number above 0.")
        return cfg

    def ours(self, root: dict[str, Any]) -> dict[str, Any]:
        dla = dict(self.mapping(root, "dla"))
        version = dla.pop("format", FORMAT)
        if version != FORMAT or isinstance(version, bool):
            raise self.fail(f"dla.format is {_show(version)}, this version of dla reads {FORMAT}. Try a newer dla.")
        if not isinstance(dla.get("preprocessing") or {}, dict):
            raise self.fail(f"dla.preprocessing is {_kind(dla['preprocessing'])}. Allowed: an object.")
        temperature = dla.get("temperature")
        if temperature is not None and not _is_temperature(temperature):
            raise self.fail(f"dla.temperature is {_show(temperature)}. Allowed: a number from 0.01 to 100.")
        return dla


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return "missing" if value is None else names.get(type(value), "a number")


def _show(value: object) -> str:
    text = "missing" if value is None else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def parse_config(data: bytes, where: str) -> ModelConfig:
    """The config in the bytes of a `config.json`.

    Raises:
        DamagedError: no JSON, or not the JSON of a network.
    """
    try:
        mapping = json.loads(data)
        json.dumps(mapping, ensure_ascii=False).encode()  # a lone surrogate is a text that nothing can print
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not readable as JSON: {error}.") from error
    return ModelConfig.from_mapping(mapping, where)


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """The config of a model folder.

    Raises:
        UnavailableError: no such folder, or it has no `config.json`.
        DamagedError: the config is broken.
    """
    path = Path(folder) / CONFIG
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnavailableError(
            f"{path} does not exist. A model folder holds {CONFIG} and {WEIGHTS}; a bare file is named itself."
        ) from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_config(data, str(path))


def write_folder(folder: str | os.PathLike[str], model_state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write a model folder, or write an existing one anew. Equal weights and configs give equal files.

    Both files are written aside and flushed to the disk before they take their places: no reader ever sees half of
    one, and a disk that is full changes nothing.

    Raises:
        UsageError: the folder holds something else than a model, or the config is not one that can be read again.
        DlaError: the disk is full or cannot be written.
    """
    import safetensors.torch  # here, because whoever only reads a config needs no torch

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
        # The config goes first: whatever is left by a crash is still known as a model folder and can be written anew.
        weights = safetensors.torch.save(tensors, metadata={"format": "pt"})
        write_files({folder / CONFIG: text, folder / WEIGHTS: weights})
    except OSError as error:
        if new:
            with suppress(OSError):
                folder.rmdir()
        raise DlaError(f"{folder} cannot be written: {error.strerror or error}.") from error


def write_temperature(folder: str | os.PathLike[str], temperature: float) -> None:
    """Have a model folder say this temperature. The rest of its config stays as it is, whoever wrote it.

    Raises:
        UnavailableError, DamagedError: it is no model folder.
        DlaError: it cannot be written.
    """
    path = Path(folder) / CONFIG
    read_config(folder)
    try:
        root = json.loads(path.read_bytes())
        root["dla"] = {"format": FORMAT, **(root.get("dla") or {}), "temperature": temperature}
        text = json.dumps(root, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        write_files({path: text.encode()})
    except OSError as error:
        raise DlaError(f"{path} cannot be written: {error.strerror or error}.") from error


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is a file. A model is written to a folder of its own.")
    if all(path.name.endswith(".part") for path in folder.iterdir()):
        return
    try:
        read_config(folder)
    except UnavailableError as error:
        raise UsageError(
            f"{folder} is not empty and not a model folder, so it is left alone. Try: a new or empty folder."
        ) from error


def half_precision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in float16; batch-norm statistics stay float32 and counters integers.

    Raises:
        UsageError: a weight is too large for float16.
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
