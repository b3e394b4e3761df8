"""The options that commands and functions share: each one's type, default, range and help.

Command-line flags and keyword arguments take their defaults from here. This module imports nothing slow.
"""

from __future__ import annotations

import math
import os
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dla.errors import UsageError

Precision = Literal["fp32", "bf16", "int8"]  # of the multiplications; outputs are float32
PrecisionChoice = Literal["fp32", "bf16", "int8", "auto"]
ResultFormat = Literal["table", "json", "jsonl", "csv"]
Preset = Literal["model", "imagenet"]
TestTime = Literal["none", "flips", "scales", "both"]
PhotoCache = Literal["none", "ram", "disk"]
ConvertFormat = Literal["folder", "timm", "authors"]
CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"]
Exif = Literal["apply", "ignore"]
TaskName = Literal["classify", "segment", "edges"]
TargetName = Literal["onnx", "openvino", "pt2"]
RunnerName = Literal["local", "ray"]


CGROUPS = "/sys/fs/cgroup"


def cores() -> int:
    """Return the number of CPU cores that this process may use: those of its affinity, or its container's quota."""
    allowed, quota = _affinity(), cpu_quota(CGROUPS)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def limit_threads() -> None:
    """Have PyTorch, if it is imported later, compute with `cores` threads where a container's quota leaves fewer."""
    if cores() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: str, own: str = "/proc/self/cgroup") -> float | None:
    """Return the cores that the control groups of this process leave it, the fewest of any level; None: no limit.

    Args:
        root: where control groups (version 2) are mounted. In a container its own group is at the root.
        own: the file that names this process's group.
    """
    group = ""
    for line in _lines_of(own):
        if line.startswith("0::"):
            group = line[3:].strip()
    levels = [part for part in group.split("/") if part not in ("", "..")]
    quotas = []
    for depth in range(len(levels) + 1):
        for line in _lines_of(os.path.join(root, *levels[:depth], "cpu.max")):
            quota, _, period = line.partition(" ")
            if quota.isdigit() and period.strip().isdigit():
                quotas.append(int(quota) / max(1, int(period)))
    return min(quotas, default=None)


def _lines_of(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readlines()
    except OSError:
        return []  # another system, or another version of control groups


def option(default: Any, text: str, low: float | None = None, high: float | None = None) -> Any:
    """Return a field with its default, the help text of its flag and the range of its values."""
    return field(default=default, metadata={"help": text, "range": None if low is None else (low, high)})


def check_range(name: str, value: Any, option: Field[Any]) -> None:
    """Raise a UsageError if a value is outside its option's range; None is always allowed."""
    allowed = option.metadata.get("range")
    if allowed is not None and value is not None and not allowed[0] <= value <= allowed[1]:
        raise UsageError(f"{name} is {value}. Allowed: {allowed[0]:,} to {allowed[1]:,}")


class _Checked:
    """Base of options that raise a UsageError for a value outside its range or choices."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for f in fields(self):  # type: ignore[arg-type]
            value, choices = getattr(self, f.name), get_args(types[f.name])
            check_range(f.name, value, f)
            if get_origin(types[f.name]) is Literal and value not in choices:
                raise UsageError(f"{f.name} is {value!r}. Allowed: {', '.join(choices)}")


@dataclass(frozen=True)
class ReadOptions:
    """How photos are read.

    exif: "apply" rotates photos by their EXIF orientation, "ignore" leaves them as stored.
    max_pixels: larger photos are refused by their header, before memory is allocated.
    allow_truncated: decode the part of a truncated file that is there.
    max_bytes: larger files are refused before they are read.
    """

    exif: Exif = "apply"
    max_pixels: int = 179_000_000
    allow_truncated: bool = option(False, "decode the available part of truncated files")
    max_bytes: int = 600_000_000


@dataclass(frozen=True)
class BatchOptions(_Checked):
    """How photos are read and batched."""

    batch_size: int = option(8, "photos per batch", 1, 100_000)
    workers: int | None = option(None, "threads that read and resize photos (default: one per core)", 0, 1024)

    @property
    def threads(self) -> int:
        """Number of reading threads; 0 reads in the caller's thread."""
        return cores() if self.workers is None else self.workers


@dataclass(frozen=True)
class PredictOptions(_Checked):
    """What a prediction holds."""

    topk: int = option(5, "classes per photo", 1, 100_000)


@dataclass(frozen=True)
class ExplainOptions:
    """Which class is explained, and at which map."""

    class_id: str | None = option(None, "class to explain, by id or unique label (default: the most probable one)")
    against: str | None = option(None, "explain the class rather than this one")
    at: str = option("level5", "level0 to level5, or a node that dla info MODEL --nodes lists")


@dataclass(frozen=True)
class EngineOptions(_Checked):
    """How a network is run. The fields are arguments of `dla.load`.

    Raises:
        UsageError: for values that contradict each other.
    """

    device: str = option("auto", "auto, cpu, cuda, mps")
    cache_dir: str | None = None
    engine: str = option("auto", "openvino, onnx, torch, or auto: the fastest here, see dla info MODEL --engines")
    precision: PrecisionChoice = option(
        "fp32",
        "bf16 (if the CPU or GPU supports it) and int8 (if the network has an int8 model) are faster and slightly "
        "less exact; auto: int8 if it was checked on such a CPU, else fp32",
    )
    threads: int | None = option(None, "threads of the network (default: one per core)", 1, 1024)
    photos: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "int8" and (self.engine not in ("auto", "openvino") or self.device not in ("auto", "cpu")):
            where = self.engine if self.engine != "auto" else self.device
            raise UsageError(f"int8 runs in the engine openvino on the CPU, not in {where}. Try --engine openvino")
        if self.device not in ("auto", "cpu") and self.engine not in ("auto", "torch"):
            raise UsageError(f"the engine {self.engine} runs on the CPU, not on {self.device}. Try --engine torch")


@dataclass(frozen=True)
class PreprocessingOptions(_Checked):
    """How photos are prepared for a network, where its files do not say it; None: as they say, or a guess."""

    input_size: int | None = option(None, "side of the square that the network sees, in pixels", 1, 65_536)
    crop_pct: float | None = option(None, "fraction of the resized photo that the crop keeps", 0.001, 100)
    crop_mode: CropMode | None = option(None, "crop the long side, squash the photo, or add a border to the short side")
    interpolation: Interpolation | None = option(None, "resampling filter")
    exif: Exif | None = option(None, "apply or ignore the EXIF orientation of photos")


@dataclass(frozen=True)
class EvalOptions(_Checked):
    """How photos are preprocessed in a validation."""

    preset: Preset = option(
        "model", "model: the model's own preprocessing; imagenet: as timm validates, ignoring EXIF orientation"
    )
    tta: TestTime = option("none", "test-time augmentation: flips, scales or both")


@dataclass(frozen=True)
class RuntimeOptions(_Checked):
    """Runtime settings of a training run. They do not change the result."""

    workers: int = option(2, "threads that crop and resize", 0, 1024)
    device: str = option("auto", "auto, cpu, cuda, ...")
    photo_cache: PhotoCache = option(
        "none", "cache decoded photos: in ram, up to half of it, or on disk, in the user's cache folder"
    )
    save_every: float = option(120.0, "seconds between checkpoints; one is also saved after each epoch")


@dataclass(frozen=True)
class BenchOptions:
    """What a benchmark measures and how often."""

    engine: str = option("all", "openvino, onnx, torch, or all")
    precision: Literal["all", "fp32", "bf16", "int8"] = option("fp32", "one precision, or all that are possible here")
    batches: tuple[int, ...] = (1, 8)
    against: Literal["timm"] | None = option(None, "also measure timm's network with the same weights and compare")
    threads: int | None = option(None, "threads that compute (default: each engine's own choice)")
    rounds: int = option(7, "measurements of each row, at least 3")


@dataclass(frozen=True)
class ExportOptions:
    """How an exported file computes."""

    precision: Literal["fp32", "int8"] = option("fp32", "int8 (only for openvino) is faster and slightly less exact")


@dataclass(frozen=True)
class BoundaryOptions(_Checked):
    """How boundary maps are scored.

    nms: apply non-maximum suppression first. Maps that had theirs, and the benchmark's own, need none.
    """

    thresholds: int = option(99, "boundaries: thresholds, evenly spaced between 0 and 1", 1, 10_000)
    tolerance: float = option(0.0075, "boundaries: largest distance of a match, as a share of the diagonal", 1e-6, 1)
    nms: bool = True
    nms_m: float = option(1.01, "boundaries: factor of non-maximum suppression; above 1, wider maxima stay", 0.1, 10)


AccessLog = Literal["off", "json"]


@dataclass(frozen=True)
class ServeOptions(_Checked):
    """Where a service listens, how much it takes at once, and how long it waits.

    allow_host: names in `Host` that are answered, besides IP addresses, localhost and `host`.
    cors: origins whose pages may use the service.
    """

    name: str | None = option(None, "the model's name in the Open Inference Protocol (default: its folder's)")
    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(8080, "port; 0: any that is free", 0, 65_535)
    uds: str | None = option(None, "listen on this Unix socket instead")
    root_path: str = option("", "path under which a proxy shows the service")
    proxy_headers: bool = option(False, "take the client's address from the X-Forwarded-For of a proxy on this machine")
    allow_host: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    token_file: str | None = option(None, "a file with the token that requests must carry; read again at SIGHUP")
    max_batch: int = option(8, "photos that the engine takes at once", 1, 1024)
    queue: int = option(64, "photos that wait or are in work; further requests get 503", 1, 100_000)
    decoders: int = option(2, "threads that decode and resize photos", 1, 1024)
    max_body: int = option(32, "largest body of a request, in MiB", 1, 1024)
    max_megapixels: float = option(50.0, "refuse larger photos", 1e-6, 1e6)
    max_connections: int = option(512, "connections at once; further ones get 503", 1, 100_000)
    receive_timeout: float = option(20.0, "seconds in which a request must have come", 0.1, 3600)
    timeout: float = option(30.0, "seconds in which a photo must be answered; then 504", 0.1, 3600)
    keep_alive: float = option(5.0, "seconds that a connection may be idle", 0.1, 3600)
    drain: float = option(2.0, "seconds after SIGTERM in which new requests are still answered", 0, 3600)
    grace: float = option(20.0, "seconds after SIGTERM after which requests are cut off", 0, 3600)
    no_page: bool = option(False, "serve no page at /")
    no_metrics: bool = option(False, "serve no /metrics")
    access_log: AccessLog = option("off", "json: a line for each request on standard error")


TILE_OVERLAP = 256  # of neighbouring tiles, in pixels; the effective receptive field is smaller: benchmarks/tiles.py


@dataclass(frozen=True)
class DenseOptions:
    """At which size a photo is seen, and from which size on in tiles."""

    size: int | str = option(
        "trained",
        "the short side at which the network sees a photo, in pixels; trained: as in its training; native: the photo's "
        "own",
    )
    tile: int = option(1024, "larger photos are computed in tiles of this side", 2 * TILE_OVERLAP, 65_536)

    def __post_init__(self) -> None:
        if not (self.size in ("trained", "native") or (isinstance(self.size, int) and 1 <= self.size <= 65_536)):
            raise UsageError(f"size is {self.size}. Allowed: trained, native, or the short side in pixels, to 65,536")
        if not 2 * TILE_OVERLAP <= self.tile <= 65_536:
            raise UsageError(f"tile is {self.tile}. Allowed: {2 * TILE_OVERLAP} to 65,536 pixels")

    def input_size(self, photo: tuple[int, int], trained: int | None) -> tuple[int, int]:
        """Return the (height, width) at which a photo of (width, height) is seen."""
        width, height = photo
        short = trained if self.size == "trained" else None if self.size == "native" else int(self.size)
        if short is None or short == min(width, height):
            return height, width
        # a product of whole numbers before the division, so that exact halves are halves in exported files too
        least = min(width, height)
        return max(1, round(height * short / least)), max(1, round(width * short / least))


@dataclass(frozen=True)
class BulkEngineOptions(EngineOptions):
    """How each process of a bulk run runs its network."""

    engine: str = option("auto", "openvino, onnx, torch, or auto: the first of these that is installed")
    threads: int | None = option(1, "threads of the network in each process", 1, 1024)


@dataclass(frozen=True)
class BulkBatchOptions(BatchOptions):
    """How each process of a bulk run reads photos."""

    workers: int | None = option(2, "threads in each process that read and resize photos", 0, 1024)


@dataclass(frozen=True)
class BulkOptions(_Checked):
    """How the shards of a bulk run are made. Only `rows_per_shard` can change a bit of a record."""

    rows_per_shard: int = option(1000, "photos per shard; each shard is one file in --output", 1, 1_000_000)
    runner: RunnerName = option("local", "local: processes of this machine; ray: those of a Ray cluster")
    address: str | None = option(None, "the Ray cluster's address, or auto (default: a Ray of this machine alone)")
    processes: int | None = option(None, "processes of the runner local (default: one per core)", 1, 1024)
    shard: str | None = option(
        None, "make only every N-th shard, from the I-th on: an array of jobs, I from 0 to N - 1"
    )
    retry_failed: bool = option(False, "make shards again that have records with worker_died or read_error")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address is not None and self.runner != "ray":
            raise UsageError("address is for the runner ray. Add --runner ray")
        index, _, count = (self.shard or "0/1").partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UsageError(f"shard is {self.shard}. Allowed: I/N with I from 0 to N - 1, such as 0/3")

    @property
    def shard_of(self) -> tuple[int, int]:
        """I and N of `shard`; (0, 1) is all."""
        index, _, count = (self.shard or "0/1").partition("/")
        return int(index), int(count)
