"""Explain a prediction: the map of a class says how much each place of a photo speaks for it.

Mean pooling and a 1x1 convolution commute, so the classifier at each place of the last map gives the class activation
map (Zhou et al. 2016): its mean plus the bias is the logit. It needs no gradients, and every engine has what it needs.
Other poolings and other maps are explained by Grad-CAM (Selvaraju et al. 2017), in PyTorch.

K classes; C channels; h and w are the height and width of the explained map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from dla.engines.base import Engine
from dla.errors import InputError, UnknownNameError, UsageError
from dla.images.preprocessing import Box, Preprocessing
from dla.inference.pipeline import InputPipeline, PhotoInput, PhotoReader, PreparedInput
from dla.metrics.calibration import apply_temperature
from dla.models.registry import PRE_LOGITS
from dla.options import BatchOptions, ExplainOptions, ReadOptions
from dla.types import Array, ClassName
from dla.weights.model_folder import ModelConfig

if TYPE_CHECKING:
    from dla.inference.grad_cam import TappedNetwork

EXPLAIN_SCHEMA, ACTIVATIONS_SCHEMA = "dla.explain/1", "dla.activations/1"
_MEAN_POOLS = ("avg", "fast", "fastavg")
Method = Literal["cam", "grad-cam"]


@dataclass(frozen=True, slots=True)
class ExplainedClass:
    """A class of an explanation. `probability` is from 0 to 1; `logit` is the network's, before the temperature."""

    index: int
    class_id: str
    label: str
    probability: float
    logit: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why one input was answered so, or the error.

    `map` (h, w) float32 says how much each place of `box` speaks for `target`, or with `against` for it rather than for
    that class; negative values speak against it. With `method` "cam" the mean of the map plus `bias` is the logit of
    `target`, or the difference of both logits. `box` is the part of the upright photo that the network saw: left, top,
    right, bottom in pixels; padding is outside of the photo. `at` is the explained feature node, `engine` what computed
    it. `photo` is the upright photo, `files` the names of the files that `dla explain` wrote.
    """

    path: str
    target: ExplainedClass | None = None
    against: ExplainedClass | None = None
    map: Array | None = None
    bias: float | None = None
    parts: tuple[Array, Array] | None = None  # of `maps`: features (C, h, w), weight (K, C)
    box: Box = (0, 0, 0, 0)
    at: str = ExplainOptions.at
    method: Method = "cam"
    engine: str = ""
    photo: Image.Image | None = None
    files: dict[str, str] = field(default_factory=dict)
    error: InputError | None = None
    truncated: bool = False

    @property
    def maps(self) -> Array | None:
        """The maps of all classes, (K, h, w) float32, with `method` "cam"; else None."""
        return None if self.parts is None else class_maps(*self.parts)

    @property
    def peak(self) -> tuple[float, float]:
        """The place that speaks most for the class: the centre (x, y) of the map's largest cell, in photo pixels.

        Raises:
            ValueError: there is no map, as the input could not be read.
        """
        map_hw = self._answer()[0]
        row, column = divmod(int(map_hw.argmax()), map_hw.shape[1])
        left, top, right, bottom = self.box
        height, width = map_hw.shape
        return left + (column + 0.5) * (right - left) / width, top + (row + 0.5) * (bottom - top) / height

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record: dict[str, Any] = {"schema": EXPLAIN_SCHEMA, "path": self.path}
        if self.error is not None:
            return record | {"error": asdict(self.error)}
        map_hw, photo, target = self._answer()
        if self.truncated:
            record["truncated"] = True
        record |= {"width": photo.width, "height": photo.height, **asdict(target)}
        if self.against is not None:
            record["against"] = asdict(self.against)
        record |= {"at": self.at, "method": self.method, "engine": self.engine, "box": _rounded(self.box)}
        record |= {"peak": _rounded(self.peak), "bias": self.bias, "shape": list(map_hw.shape)}
        record["values"] = [_rounded(row, 7) for row in map_hw.tolist()]
        return record | {"files": dict(self.files)} if self.files else record

    def overlay(self) -> Image.Image:
        """Return the photo, RGB, with what speaks for the class as a heat map over it, and a caption below.

        Raises:
            ValueError: there is no map, as the input could not be read.
        """
        from dla.drawing.overlay import draw_heat_map  # here, because few runs draw

        map_hw, photo, target = self._answer()
        title = f"{target.label}  {100 * target.probability:.1f} %"
        if self.against is not None:
            title += f"  rather than  {self.against.label}  {100 * self.against.probability:.1f} %"
        height, width = map_hw.shape
        kind = {"cam": "class activation map", "grad-cam": "Grad-CAM"}[self.method]
        return draw_heat_map(photo, map_hw, self.box, (title, f"{kind} of {self.at}, {width} x {height} places"))

    def _answer(self) -> tuple[Array, Image.Image, ExplainedClass]:
        if self.map is None or self.photo is None or self.target is None:
            raise ValueError(f"{self.path} has no map: {self.error.message if self.error else 'no photo'}")
        return self.map, self.photo, self.target


@dataclass(frozen=True, slots=True, eq=False)
class NodeActivation:
    """The mean over the channels of the map at a level or aggregation node, (h, w) float32."""

    name: str
    channels: int
    stride: int
    map: Array


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """How active each level and aggregation node is at each place of one input, in the order they run, or the error.

    `box`, `engine`, `photo` and the rest are as in `Explanation`.
    """

    path: str
    nodes: tuple[NodeActivation, ...] = ()
    box: Box = (0, 0, 0, 0)
    engine: str = ""
    photo: Image.Image | None = None
    error: InputError | None = None
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the record as in JSON (docs/formats.md)."""
        record: dict[str, Any] = {"schema": ACTIVATIONS_SCHEMA, "path": self.path}
        if self.error is not None or self.photo is None:
            return record | {"error": asdict(self.error) if self.error else None}
        if self.truncated:
            record["truncated"] = True
        record |= {"width": self.photo.width, "height": self.photo.height, "engine": self.engine}
        record["box"] = _rounded(self.box)
        return record | {"nodes": [
            {"name": n.name, "channels": n.channels, "stride": n.stride, "shape": list(n.map.shape),
             "values": [_rounded(row, 4) for row in n.map.tolist()]}
            for n in self.nodes
        ]}  # fmt: skip


def _rounded(values: Iterable[float], digits: int = 6) -> list[float]:
    return [float(f"{value:.{digits}g}") for value in values]


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """The map (h, w) of the class `index`, the logits of all classes; with "cam" the bias and what gives all maps."""

    index: int
    map: Array
    logits_K: Array
    bias: float | None = None
    parts: tuple[Array, Array] | None = None


# from preprocessed uint8 photos (1, H, W, 3), the index of the class or None, and that of the class against it
_Compute = Callable[["Array", int | None, int | None], ClassMap]


@dataclass(frozen=True)
class Explainer:
    """Explains the predictions of one classifier.

    An int8 model gives no features, so its network is explained in fp32.
    """

    opened: Engine
    preprocessing: Preprocessing
    classes: tuple[ClassName, ...]
    config: ModelConfig

    @cached_property
    def engine(self) -> Engine:
        """The engine that computes the maps of "cam"."""
        return self.opened.with_features()

    @cached_property
    def tapped(self) -> TappedNetwork:
        """The network in PyTorch."""
        from dla.inference.grad_cam import TappedNetwork  # imports torch

        return TappedNetwork(self.engine, self.config)

    def explain(
        self, images: PhotoInput | Iterable[PhotoInput], options: ExplainOptions, reading: dict[str, Any]
    ) -> Explanation | Iterator[Explanation]:
        """Return the explanation of one photo, or a generator of those of several; `reading` as for `_of_photos`.

        Raises:
            UnknownNameError: the network has no such node or class.
            UsageError: a label belongs to several classes, or the node has no map.
        """
        target, against = (
            None if name is None else find_class(self.classes, name) for name in (options.class_id, options.against)
        )
        if options.at == PRE_LOGITS:
            raise UsageError(f"{PRE_LOGITS} has no places to show. Give level5, or a node before it")
        self.engine.features_at(options.at)  # raises for an unknown node
        exact = options.at == ExplainOptions.at and self.config.model_args.get("global_pool", "avg") in _MEAN_POOLS
        compute = self._class_maps(options.at) if exact else self._grad_cam(options.at)
        name = self.engine.name if exact else self.tapped.name

        def record(p: PreparedInput, pixels_HW3: Array | None) -> Explanation:
            if pixels_HW3 is None or p.kept is None:
                return Explanation(p.name, error=p.error)
            found = compute(pixels_HW3[None], target, against)
            described = self._described(found.logits_K)
            return Explanation(
                p.name, described(found.index), None if against is None else described(against), found.map, found.bias,
                found.parts, self.preprocessing.seen_box(p.kept.size), options.at, "cam" if exact else "grad-cam", name,
                p.kept, truncated=p.truncated,
            )  # fmt: skip

        return self._of_photos(images, record, **reading)  # type: ignore[no-any-return]

    def activations(
        self, images: PhotoInput | Iterable[PhotoInput], reading: dict[str, Any]
    ) -> Activations | Iterator[Activations]:
        """Return the activations of one photo, or a generator of those of several; `reading` as for `_of_photos`."""
        infos = self.tapped.places()

        def record(p: PreparedInput, pixels_HW3: Array | None) -> Activations:
            if pixels_HW3 is None or p.kept is None:
                return Activations(p.name, error=p.error)
            maps = self.tapped.mean_activations(tuple(infos), pixels_HW3[None])
            nodes = (NodeActivation(at, *infos[at], map_hw) for at, map_hw in zip(infos, maps, strict=True))
            box = self.preprocessing.seen_box(p.kept.size)
            return Activations(p.name, tuple(nodes), box, self.tapped.name, p.kept, truncated=p.truncated)

        return self._of_photos(images, record, **reading)  # type: ignore[no-any-return]

    def _of_photos(
        self,
        images: PhotoInput | Iterable[PhotoInput],
        record: Callable[[PreparedInput, Any], Any],
        *,
        workers: int | None = 1,
        strict: bool = False,
        allow_truncated: bool = ReadOptions.allow_truncated,
        max_pixels: int = ReadOptions.max_pixels,
        max_bytes: int = ReadOptions.max_bytes,
    ) -> Any:
        """Return the record of one photo, or of each of several; of these, few are held whole."""
        options = ReadOptions(self.preprocessing.exif, max_pixels, allow_truncated, max_bytes)
        reader = PhotoReader((self.preprocessing,), options, strict, lambda photo: photo)
        pipeline = InputPipeline(1, BatchOptions(workers=workers).threads)
        return pipeline.of_photos(images, reader, lambda pixels_NHW3: pixels_NHW3, record)

    def _described(self, logits_K: Array) -> Callable[[int], ExplainedClass]:
        """Return a function that describes the class of an index."""
        powers_1K = np.exp(logits_K - logits_K.max()).astype(np.float32)[None]
        probabilities_K = apply_temperature(powers_1K / powers_1K.sum(), self.config.temperature)[0]
        return lambda k: ExplainedClass(
            k, self.classes[k].class_id, self.classes[k].label, float(probabilities_K[k]), float(logits_K[k])
        )

    def _class_maps(self, at: str) -> _Compute:
        features, (weight_KC, bias_K) = self.engine.features_at(at), self.engine.classifier()

        def compute(pixels_1HW3: Array, target: int | None, against: int | None) -> ClassMap:
            features_Chw = features(pixels_1HW3)[0]
            pooled_C = features_Chw.mean((1, 2), dtype=np.float64)
            # einsum: the threads of @ would spin on, and slow down the next photo
            logits_K = np.einsum("kc,c->k", weight_KC, pooled_C) + bias_K
            chosen = int(logits_K.argmax()) if target is None else target
            weight_C, bias = weight_KC[chosen], float(bias_K[chosen])
            if against is not None:
                weight_C, bias = weight_C - weight_KC[against], bias - float(bias_K[against])
            map_hw = np.einsum("c,chw->hw", weight_C, features_Chw)
            return ClassMap(chosen, map_hw, logits_K, bias, (features_Chw, weight_KC))

        return compute

    def _grad_cam(self, at: str) -> _Compute:
        tapped = self.tapped

        def compute(pixels_1HW3: Array, target: int | None, against: int | None) -> ClassMap:
            return ClassMap(*tapped.grad_cam(pixels_1HW3, at, target, against))

        return compute


def class_maps(features_Chw: Array, weight_KC: Array) -> Array:
    """Return the class activation maps (K, h, w): the classifier, without its bias, at each place of the last map."""
    flat_Cp = features_Chw.reshape(len(features_Chw), -1)
    maps_Kp: Array = weight_KC @ flat_Cp
    return maps_Kp.reshape(len(weight_KC), *features_Chw.shape[1:])


def find_class(classes: Sequence[ClassName], name: str) -> int:
    """Return the index of the class with this id, or else with this label.

    Raises:
        UnknownNameError: no class has it.
        UsageError: several classes have this label.
    """
    for attribute in ("class_id", "label"):
        found = [k for k, c in enumerate(classes) if getattr(c, attribute) == name]
        if len(found) > 1:
            ids = ", ".join(classes[k].class_id for k in found)
            raise UsageError(f'{len(found)} classes have the label "{name}". Give an id: {ids}')
        if found:
            return found[0]
    known = [text for c in classes for text in (c.class_id, c.label)]
    raise UnknownNameError("class of this network", name, known, see="dla info MODEL")
