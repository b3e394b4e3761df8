"""What goes in and out, as frozen values, and their JSON. A schema's number changes when its meaning does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "BenchLeftOut",
    "BenchReport",
    "BenchRow",
    "Class",
    "DataFinding",
    "DataReport",
    "EngineChoice",
    "EngineTiming",
    "ExportReport",
    "Exported",
    "Features",
    "Flip",
    "InputError",
    "ModelInfo",
    "ModelRow",
    "Prediction",
    "StoredWeights",
]

PREDICT_SCHEMA = "dla.predict/1"
MODELS_SCHEMA = "dla.models/1"
INFO_SCHEMA = "dla.info/1"
FEATURES_SCHEMA = "dla.features/1"
DATA_CHECK_SCHEMA = "dla.data-check/1"
BENCH_SCHEMA = "dla.bench/1"
EXPORT_SCHEMA = "dla.export/1"


@dataclass(frozen=True, slots=True)
class Class:
    """One class that a photo may show. `probability` is from 0 to 1; `index` is the network's output."""

    rank: int
    index: int
    class_id: str
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class InputError:
    """Why an input has no answer. `code` is one of docs/errors.md's words, `message` is for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one input: classes by falling probability, or the error that took their place.

    `path` is the input as it was given, or a name such as "input 3" for one that has no path. `truncated` says
    that the file ended early and only the part that is there was classified.
    """

    path: str
    classes: tuple[Class, ...] = ()
    error: InputError | None = None
    truncated: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        record: dict[str, Any] = {"schema": PREDICT_SCHEMA, "path": self.path}
        if self.error is not None:
            return record | {"error": asdict(self.error)}
        if self.truncated:
            record["truncated"] = True
        return record | {"predictions": [asdict(c) for c in self.classes]}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a network holds at one place for one input, float32 (C,) or (C, H, W), or the error that took its place.

    `path` and `truncated` are as in `Prediction`.
    """

    path: str
    values: np.ndarray[Any, np.dtype[np.float32]] | None = None
    error: InputError | None = None
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Where a network's weights are, and how large.

    `state`: "shipped" inside the package, "cached" from the hub, "here" in a file of the user's, "to download", or
    "none" where nobody released any. `size_bytes` is the file's size, or, where `estimated`, 4 bytes a parameter.
    """

    state: Literal["shipped", "cached", "here", "to download", "none"]
    size_bytes: int | None = None
    estimated: bool = False
    path: str | None = None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One network with its weights, in short; where there are no weights, with a classifier of 1000 classes.

    `model` is what `--model` and `dla.load` take. `macs` are multiplications for one image of `input_size` (channels,
    height, width). `top1` is in per cent: the published accuracy on ImageNet-1k, of a shipped network that on the
    validation photos of its own data set.
    """

    model: str
    architecture: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    top1: float | None
    num_classes: int | None
    licence: str | None
    weights: StoredWeights

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        return {"schema": MODELS_SCHEMA, **asdict(self)}


@dataclass(frozen=True, slots=True)
class EngineTiming:
    """One engine with one network here, in seconds: until its first answer, for one photo, for each of many."""

    engine: str
    first_s: float
    one_s: float
    each_s: float


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What was timed, and which engine `auto` takes for one photo and for many. `missing` are not installed."""

    timings: tuple[EngineTiming, ...]
    for_one: str
    for_many: str
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Everything there is to know about one network with its weights.

    `model`, `params`, `macs` and `input_size` are as in `ModelRow`. `origin` is what was read (owner/name@commit,
    shipped:name or a path) and None where the weights are not here; `homepage` is where they were first published.
    `classes` are (class_id, label) in the order of the outputs. `published` are per cent on ImageNet-1k, `results`
    and `recipe` what the training wrote down. `temperature` is what the scores are divided by, where the folder says
    one. `sha256` is the weight file's, `notes` what there is to say about it.
    `nodes` are the aggregation nodes, `engines` how fast which engine is here, where they were asked for.
    """

    model: str
    architecture: str
    task: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    weights: StoredWeights
    sha256: str | None
    origin: str | None
    homepage: str | None
    licence: str | None
    restrictions: str | None
    dataset: str | None
    num_classes: int
    classes: tuple[tuple[str, str], ...]
    preprocessing: Mapping[str, Any] | None
    temperature: float | None
    published: Mapping[str, float] | None
    results: Mapping[str, Any] | None
    recipe: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    nodes: tuple[Mapping[str, Any], ...] | None = None
    engines: EngineChoice | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        record = {"schema": INFO_SCHEMA, **asdict(self)}
        record["classes"] = [{"class_id": class_id, "label": label} for class_id, label in self.classes]
        for asked_for in ("nodes", "engines"):
            if record[asked_for] is None:
                del record[asked_for]
        return record


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One thing that is wrong with a set of photos, or worth knowing: its kind, and what it is about.

    `kind` is a word of docs/data.md, `hurts` whether a run would suffer from it. `photos` are (name, split, class_id)
    of every photo that is meant; the split is "" in a set that has none. `class_ids` are the classes that are meant.
    `exact` says of duplicates that their pixels are identical.
    """

    kind: str
    hurts: bool
    message: str
    photos: tuple[tuple[str, str, str], ...] = ()
    class_ids: tuple[str, ...] = ()
    exact: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON has it (docs/formats.md)."""
        photos = [{"name": n, "split": split or None, "class_id": c} for n, split, c in self.photos]
        record = asdict(self) | {"photos": photos, "class_ids": list(self.class_ids)}
        return {k: v for k, v in record.items() if v is not None}


@dataclass(frozen=True, slots=True)
class DataReport:
    """What a set of photos is, and everything that was found in it.

    `splits` has each split's photos by class; a set that is not divided is under "". `short_sides` are the smallest,
    middle and largest short side of the photos in pixels. `formats` and `modes` count the readable photos by Pillow's
    words; `exif_rotated` are those whose EXIF block turns or flips them.
    """

    data: str
    splits: Mapping[str, Mapping[str, int]]
    readable: int
    exif_rotated: int
    short_sides: tuple[int, int, int] | None
    formats: Mapping[str, int]
    modes: Mapping[str, int]
    findings: tuple[DataFinding, ...]
    seconds: float

    @property
    def fit(self) -> bool:
        """Whether nothing was found that would hurt a run."""
        return not any(finding.hurts for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        record = {"schema": DATA_CHECK_SCHEMA, **asdict(self), "fit": self.fit}
        record["splits"] = [{"split": name or None, "photos": sum(classes.values()), "classes": dict(classes)}
                            for name, classes in self.splits.items()]  # fmt: skip
        record["exif_rotated"] = {"photos": self.exif_rotated, "share": self.exif_rotated / max(1, self.readable)}
        record["findings"] = [finding.to_dict() for finding in self.findings]
        return record


@dataclass(frozen=True, slots=True)
class BenchRow:
    """How fast one network is by one engine with so many photos at once, from pixels to probabilities.

    `engine` is one of dla's, or "timm". `top1` is in per cent, published ("ImageNet-1k") or of the training's own
    validation photos ("own"), as `top1_on` says. `drawn` says that the weights are random: good for speed only.
    `p50_s` and `p95_s` are seconds of one call. `memory` is the most bytes that a process had which did nothing else.
    `of_peak` is the share of what the machine can do in fp32, for `macs` multiplications and as many additions a
    photo. `ratio` is how many times as fast it is as `ratio_to`, the first row with the same network and batch: the
    median over the rounds, and the smallest and largest.
    """

    model: str
    architecture: str
    params: int
    macs: int
    input_size: tuple[int, int, int]
    top1: float | None
    top1_on: str | None
    drawn: bool
    engine: str
    precision: str
    batch: int
    calls: int
    p50_s: float
    p95_s: float
    photos_per_s: float
    memory: int | None
    of_peak: float
    ratio_to: str
    ratio: float
    ratio_range: tuple[float, float]

    @property
    def arm(self) -> str:
        """What ran, in words: "openvino fp32"."""
        return f"{self.engine} {self.precision}"


@dataclass(frozen=True, slots=True)
class BenchLeftOut:
    """What was asked for and cannot be measured here, and why."""

    model: str
    engine: str
    precision: str
    reason: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured on one machine in one run.

    `peak_gflops` is how many 1e9 multiplications and additions in fp32 a second the machine did in the same run.
    `others_before` and `others_during` are the cores that other processes kept busy.
    """

    machine: str
    instructions: tuple[str, ...]
    cores: int
    threads: int | None
    rounds: int
    versions: Mapping[str, str]
    peak_gflops: float
    others_before: float
    others_during: float
    rows: tuple[BenchRow, ...]
    left_out: tuple[BenchLeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/formats.md)."""
        return {"schema": BENCH_SCHEMA, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Flip:
    """A picture whose first class another way of computing changed, from `expected` to `found` (class ids).

    `margin` is how much more probable `expected` was, from 0 to 1.
    """

    picture: str
    expected: str
    found: str
    margin: float


@dataclass(frozen=True, slots=True)
class ExportReport:
    """How an exported file answers, beside PyTorch.

    `model` is what was read, `sha256` its weight file's; `file` was written as `form`, and `runtime` ran it. `pictures`
    were made of `photos`, and went through it `batches` at a time. On the very pixels that the file's network saw,
    `same_flips` are other first classes, and `largest_difference` is of probabilities. Where the file takes photos, the
    pixels that it makes of them differ by up to `largest_level` (0 to 255), and `photo_flips` are other first classes
    than those of the pixels that they should be; else these two are None. Of an int8 form `gates` say how good it is
    beside fp32.
    """

    model: str
    sha256: str
    form: str
    file: str
    runtime: str
    against: str
    photos: int
    unreadable: int
    pictures: int
    batches: tuple[int, ...]
    largest_difference: float
    same_flips: tuple[Flip, ...]
    largest_level: int | None
    photo_flips: tuple[Flip, ...] | None
    passed: bool
    precision: str = "fp32"
    gates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it (docs/export.md); what is no number is null there."""
        record = {"schema": EXPORT_SCHEMA, **asdict(self)}
        record["largest_difference"] = self.largest_difference if math.isfinite(self.largest_difference) else None
        return record


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: its folder, the file in it that is the network, and how that was checked."""

    folder: Path
    file: Path
    report: ExportReport
