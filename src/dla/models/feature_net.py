"""A network as a feature extractor: timm's `features_only`.

The map of level l is (N, channels[l], ceil(H/2^l), ceil(W/2^l)).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.activation_checkpointing import set_checkpointing, without_checkpointing
from dla.models.dla import DLA, check_format, take_indices
from dla.models.tree import Tree

FEATURE_OPTIONS = ("out_indices", "feature_cls", "out_map", "output_fmt", "feature_concat", "flatten_sequential")

# The prefix of the levels in the state dict of each of timm's wrappers.
_HOMES = {"list": "", "dict": "", "hook": "body", "fx": "graph_module", "getter": "model"}
_OF_THE_CLASSIFIER = ("num_classes", "classifier", "global_pool")


class FeatureInfo:
    """Facts about each level's map: `num_chs`, `reduction` (its stride), `module`, `index`.

    The methods return a list for the output maps (`out_indices`), or with `idx` the fact of a level or a list of them.
    """

    def __init__(self, feature_info: Sequence[Mapping[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [{**entry, "index": i} for i, entry in enumerate(feature_info)]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return the fact called `key`."""
        chosen = self.get_dicts(None, idx)
        return chosen[key] if isinstance(chosen, dict) else [entry[key] for entry in chosen]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        """Return the facts called `keys` as a dict; all of them by default."""
        if isinstance(idx, int):
            return {key: self.info[idx][key] for key in keys or self.info[idx]}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the channels."""
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the stride in pixels."""
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the name of the level's module."""
        return self.get("module", idx)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class _Levels(nn.ModuleDict):
    """Modules that run one after the other."""

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Return the map of each module by its name."""
        maps: dict[str, Tensor] = {}
        for name, part in self.items():
            x = part(x)
            maps[name] = x
        return maps


class FeatureNet(_Levels):
    """The levels of a network up to the last requested map.

    Args:
        model: the network; its levels are shared, not copied.
        out_indices: levels 0 to 5, negative ones from the end; a number n means the last n.
        feature_cls: "list", "dict", "hook", "fx" or "getter". All but "dict" return lists ("hook" in the order of
            `out_indices`); the names in the state dict are those of timm's wrapper of that name.
        out_map: keys of the maps, in place of their indices ("dict" only).
        output_fmt: "NCHW".
        feature_concat: ignored: each level has one map.
        flatten_sequential: name modules `level0_0` in place of `level0.0` ("list" and "dict"), which leaves no maps of
            levels 0 and 1.

    Raises:
        UsageError: for a value that is not allowed, alone or with the others.
    """

    __constants__ = ("as_dict", "home", "nested")  # TorchScript skips the branches that they exclude

    def __init__(
        self,
        model: DLA,
        out_indices: int | Sequence[int] = (1, 2, 3, 4, 5),
        feature_cls: str = "list",
        out_map: Sequence[object] | None = None,
        output_fmt: str = "NCHW",
        feature_concat: bool = False,
        flatten_sequential: bool = False,
    ) -> None:
        super().__init__()
        kind = feature_cls.lower()
        if kind not in _HOMES:
            raise UsageError(f"feature_cls is {feature_cls!r}. Allowed: {', '.join(map(repr, _HOMES))}, or a class")
        check_format(output_fmt)
        indices = tuple(range(-out_indices, 0)) if isinstance(out_indices, int) else tuple(out_indices)
        levels = take_indices(indices)
        if out_map is not None and (kind != "dict" or len(out_map) != len(levels)):
            raise UsageError(f"out_map is {out_map!r}. Allowed: a name for each map of feature_cls='dict'")
        if flatten_sequential and (_HOMES[kind] or min(levels) < 2):
            raise UsageError("flatten_sequential is for feature_cls='list' or 'dict' and for levels from 2 on")

        keys = {f"level{level}": str(key) for level, key in zip(levels, out_map or indices, strict=True)}
        self.taps = keys if kind == "hook" else dict(sorted(keys.items()))
        last = "level5" if kind == "hook" else max(keys)
        parts = dict(_parts(model, last, flatten_sequential))
        self.home = _HOMES[kind]
        self.nested = self.home != ""
        self.update({self.home: _Levels(parts)} if self.nested else parts)
        self.feature_info = FeatureInfo(model.feature_info, levels if kind == "getter" else indices)
        self.out_indices = self.feature_info.out_indices
        self.output_fmt = output_fmt
        self.as_dict = kind == "dict"
        self.grad_checkpointing = model.grad_checkpointing

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set it as `DLA.set_grad_checkpointing` does, also for the network that shares these levels."""
        self.grad_checkpointing = enable
        parts = self[self.home].children() if self.nested else self.children()
        # a lone in-place activation cannot be recomputed
        set_checkpointing((part for part in parts if isinstance(part, nn.Sequential | Tree)), enable)

    def __prepare_scriptable__(self) -> Self:
        """Return the network that `torch.jit.script` compiles."""
        return without_checkpointing(self)

    def forward(self, x: Tensor) -> list[Tensor] | dict[str, Tensor]:
        """Return the maps of images x_N3HW: a list in the order of the levels, or a dict by index or `out_map`."""
        levels = self[self.home].run(x) if self.nested else self.run(x)  # type: ignore[operator]
        maps = {key: levels[name] for name, key in self.taps.items()}
        return maps if self.as_dict else list(maps.values())


def _parts(model: DLA, last: str, flat: bool) -> Iterator[tuple[str, nn.Module]]:
    """Yield the stem and the levels up to `last` by name; with `flat`, each `nn.Sequential` is unpacked."""
    for name, module in model.named_children():
        if flat and isinstance(module, nn.Sequential):
            yield from ((f"{name}_{child}", part) for child, part in module.named_children())
        else:
            yield name, module
        if name == last:
            return


def features_of(model: DLA, feature_cls: str | Callable[..., nn.Module] = "list", **options: Any) -> nn.Module:
    """Return `model` as a feature extractor, with its `pretrained_cfg` except the fields of the classifier.

    `feature_cls` is as for `FeatureNet`, or a class that is called with the network and the options instead.
    """
    if isinstance(feature_cls, str):
        net: nn.Module = FeatureNet(model, feature_cls=feature_cls, **options)
    else:
        net = feature_cls(model, **{"out_indices": (1, 2, 3, 4, 5), **options})
    cfg: Any = {key: value for key, value in model.pretrained_cfg.items() if key not in _OF_THE_CLASSIFIER}
    net.pretrained_cfg = net.default_cfg = cfg
    net.in_chans = model.in_chans  # type: ignore[assignment]
    return net
