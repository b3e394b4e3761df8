"""A network for its maps alone: timm's `features_only`.

A map of level l is (N, channels[l], ceil(H/2^l), ceil(W/2^l)).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.activation_checkpointing import set_checkpointing, without_checkpointing
from dla.models.dla import DLA, check_format, take_indices
from dla.models.tree import Tree

__all__ = ["FEATURE_OPTIONS", "FeatureInfo", "FeatureNet", "features_of"]


FEATURE_OPTIONS = ("out_indices", "feature_cls", "out_map", "output_fmt", "feature_concat", "flatten_sequential")

# Under which name each of timm's wrappers keeps the levels: part of its state dict's names.
_HOMES = {"list": "", "dict": "", "hook": "body", "fx": "graph_module", "getter": "model"}
_OF_THE_CLASSIFIER = ("num_classes", "classifier", "global_pool")


class FeatureInfo:
    """What is known about each level's map: `num_chs`, `reduction`, `module`, `index`.

    The methods answer for the maps that are given (`out_indices`), or with `idx` for one level or a list of them.
    """

    def __init__(self, feature_info: Sequence[Mapping[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [{**one, "index": i} for i, one in enumerate(feature_info)]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        chosen = self.get_dicts(None, idx)
        return chosen[key] if isinstance(chosen, dict) else [one[key] for one in chosen]

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None) -> Any:
        if isinstance(idx, int):
            return {key: self.info[idx][key] for key in keys or self.info[idx]}
        return [self.get_dicts(keys, i) for i in (self.out_indices if idx is None else idx)]

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        return self.get("module", idx)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class _Levels(nn.ModuleDict):
    """Modules that run one after the other: x -> the map that each of them gives, by its name."""

    def run(self, x: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, part in self.items():
            x = part(x)
            found[name] = x
        return found


class FeatureNet(_Levels):
    """The levels of a network up to the last map that is asked for.

    x_N3HW -> a list of maps in the order of the levels, or a dict of them by their index as it was given.

    Args:
        model: the network; its levels are shared, not copied.
        out_indices: levels 0 to 5, negative ones from the end; one number n: the last n.
        feature_cls: "list", "dict", "hook", "fx" or "getter". All but "dict" give lists ("hook" in the order of
            `out_indices`); they differ in the names of the state dict, each as timm's wrapper of that name.
        out_map: names for the maps, in place of their indices ("dict" only).
        output_fmt: "NCHW".
        feature_concat: changes nothing: each level gives one map.
        flatten_sequential: `level0_0` in place of `level0.0` ("list" and "dict"); levels 0 and 1 give no map then.

    Raises:
        UsageError: a value that is not allowed, or not together with the others.
    """

    __constants__ = ("as_dict", "home", "nested")  # TorchScript compiles no branch that they exclude

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
        given = tuple(range(-out_indices, 0)) if isinstance(out_indices, int) else tuple(out_indices)
        levels = take_indices(given)
        if out_map is not None and (kind != "dict" or len(out_map) != len(levels)):
            raise UsageError(f"out_map is {out_map!r}. Allowed: a name for each map of feature_cls='dict'")
        if flatten_sequential and (_HOMES[kind] or min(levels) < 2):
            raise UsageError("flatten_sequential is for feature_cls='list' or 'dict' and for levels from 2 on")

        keys = {f"level{level}": str(key) for level, key in zip(levels, out_map or given, strict=True)}
        self.taps = keys if kind == "hook" else dict(sorted(keys.items()))
        last = "level5" if kind == "hook" else max(keys)
        parts = dict(_parts(model, last, flatten_sequential))
        self.home = _HOMES[kind]
        self.nested = self.home != ""
        self.update({self.home: _Levels(parts)} if self.nested else parts)
        self.feature_info = FeatureInfo(model.feature_info, levels if kind == "getter" else given)
        self.out_indices = self.feature_info.out_indices
        self.output_fmt = output_fmt
        self.as_dict = kind == "dict"
        self.grad_checkpointing = model.grad_checkpointing

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As `DLA.set_grad_checkpointing`; the network that shares these levels checkpoints them too."""
        self.grad_checkpointing = enable
        parts = self[self.home].children() if self.nested else self.children()
        # a lone activation works in place, which cannot be done twice
        set_checkpointing((part for part in parts if isinstance(part, nn.Sequential | Tree)), enable)

    def __prepare_scriptable__(self) -> Self:
        """The network that `torch.jit.script` takes."""
        return without_checkpointing(self)

    def forward(self, x: Tensor) -> list[Tensor] | dict[str, Tensor]:
        found = self[self.home].run(x) if self.nested else self.run(x)  # type: ignore[operator]
        maps = {key: found[name] for name, key in self.taps.items()}
        return maps if self.as_dict else list(maps.values())


def _parts(model: DLA, last: str, flat: bool) -> Iterator[tuple[str, nn.Module]]:
    """The stem and the levels up to `last`; `flat`: with the parts of sequences in their place."""
    for name, module in model.named_children():
        if flat and isinstance(module, nn.Sequential):
            yield from ((f"{name}_{child}", part) for child, part in module.named_children())
        else:
            yield name, module
        if name == last:
            return


def features_of(model: DLA, feature_cls: str | Callable[..., nn.Module] = "list", **options: Any) -> nn.Module:
    """`model` for its maps alone, with what stays true of its `pretrained_cfg`.

    `feature_cls` names the form of `FeatureNet`, or is called with the network and the options in its place.
    """
    if isinstance(feature_cls, str):
        net: nn.Module = FeatureNet(model, feature_cls=feature_cls, **options)
    else:
        net = feature_cls(model, **{"out_indices": (1, 2, 3, 4, 5), **options})
    cfg: Any = {key: value for key, value in model.pretrained_cfg.items() if key not in _OF_THE_CLASSIFIER}
    net.pretrained_cfg = net.default_cfg = cfg
    net.in_chans = model.in_chans  # type: ignore[assignment]
    return net
