"""Open a model by name in the engine that the options select."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dla.engines.base import Engine
from dla.engines.cpu import has_gpu
from dla.engines.graph import Network
from dla.engines.select import ENGINES, EngineBenchmark, EngineTiming, check_engine, installed, select_fastest
from dla.errors import DamagedError, OnlyTorchError
from dla.inference.traced_model import TracedModel, open_in_torch, open_traced
from dla.options import EngineOptions, Precision, cores
from dla.types import NO_PROGRESS, Progress
from dla.weights.spec import ModelFiles, open_files

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The timings, the engines that `auto` selects for one photo and for many, and those that are not installed."""

    timings: tuple[EngineTiming, ...]
    best_for_one: str
    best_for_many: str
    not_installed: tuple[str, ...] = ()


WORTH_MEASURING_S = 10.0  # from this expected run time on, a second or two of measuring pay off
FEW = 16  # with fewer photos, a run is too short even for the estimate


def open_engine(
    source: str | ModelFiles, options: EngineOptions, progress: Progress = NO_PROGRESS
) -> tuple[Engine, TracedModel]:
    """Open the network that `source` names in the engine that the options select.

    `progress` receives the bytes downloaded.

    Raises:
        UsageError: bf16 on a CPU that has no instruction for it; and as `dla.load`.
        UnavailableError: int8, but the network has no int8 model; and as `dla.load`.
    """
    if options.engine != "auto":
        check_engine(options.engine)
    files = open_files(source, options.cache_dir, progress)
    if _by_torch_only(options):
        return _by_torch(files, options)
    try:
        network, model = open_traced(files)
    except OnlyTorchError:
        if options.engine != "auto" or options.precision == "int8":
            raise
        return _by_torch(files, options)
    if options.precision in ("int8", "auto") and options.engine in ("auto", "openvino"):
        quantized = _quantized(files, network, model, options)
        if quantized is not None:
            return _openvino(network, options, quantized.model()), model
    if options.engine != "auto":
        return _make(options.engine, files, network, options), model
    if _computed(options) != "fp32":
        return _make(installed()[0], files, network, options), model
    return _fastest(files, network, model, options), model


def _computed(options: EngineOptions) -> Precision:
    """Return the precision of an engine without an int8 model."""
    return "fp32" if options.precision == "auto" else options.precision


def _by_torch_only(options: EngineOptions) -> bool:
    """Return whether PyTorch must run: it or a GPU is requested, or there is a GPU and more than one photo."""
    if options.precision == "int8":
        return False
    if options.engine != "auto" or options.device not in ("auto", "cpu"):
        return options.engine in ("auto", "torch")
    return installed() == ("torch",) or (options.device == "auto" and options.photos != 1 and has_gpu())


def _quantized(
    files: ModelFiles, network: Network, model: TracedModel, options: EngineOptions
) -> QuantizedModel | None:
    """Return the int8 model to run: with "int8" any, with "auto" only one that passed on this kind of CPU."""
    from dla.inference.int8_store import find_quantized, not_quantized_error  # here, because most runs are in fp32

    try:
        quantized = find_quantized(network, model)
    except DamagedError:
        if options.precision == "int8":
            raise
        return None  # "auto" falls back to fp32
    if options.precision == "int8":
        if quantized is None:
            raise not_quantized_error(files.name)
        return quantized
    return quantized if quantized is not None and quantized.passed_here else None


def time_engines(source: str | ModelFiles) -> EngineChoice:
    """Time every installed engine with the network that `source` names, and cache the result for `auto`.

    Raises:
        UnknownNameError, UsageError, UnavailableError, DamagedError: as `dla.load`.
    """
    one, many = EngineOptions(photos=1), EngineOptions()
    files = open_files(source)
    network, model = open_traced(files)
    timings = _benchmark(files, network, model, many).run()
    best_for_one, best_for_many = (
        "torch" if _by_torch_only(options) else select_fastest(timings, options.photos).engine
        for options in (one, many)
    )
    missing = tuple(name for name in ENGINES if name not in installed())
    return EngineChoice(timings, best_for_one, best_for_many, missing)


def _benchmark(files: ModelFiles, network: Network, model: TracedModel, options: EngineOptions) -> EngineBenchmark:
    make = partial(_make, files=files, network=network, options=options)
    return EngineBenchmark(make, network, model.config.photo_size, options.threads or cores())


def _fastest(files: ModelFiles, network: Network, model: TracedModel, options: EngineOptions) -> Engine:
    """Return the fastest engine as cached; without timings the preferred one, unless the run is worth measuring."""
    benchmark = _benchmark(files, network, model, options)
    timings = benchmark.recall()
    if not timings:
        preferred = _make(installed()[0], files, network, options)
        count = options.photos or 0
        if count < FEW or count * benchmark.seconds_each(preferred) < WORTH_MEASURING_S:
            return preferred
        timings = benchmark.run()
    return _make(select_fastest(timings, options.photos).engine, files, network, options)


def _make(name: str, files: ModelFiles, network: Network, options: EngineOptions) -> Engine:
    if name == "torch":
        return _by_torch(files, options)[0]
    if name == "onnx":
        from dla.engines.onnx import OnnxEngine

        return OnnxEngine(network, _computed(options), options.threads)
    assert name == "openvino", name
    return _openvino(network, options)


def _openvino(network: Network, options: EngineOptions, quantized: Any = None) -> Engine:
    from dla.engines.openvino import OpenvinoEngine

    exact = options.precision == "auto"  # features are computed in fp32, as int8 models have none
    precision = _computed(options) if quantized is None else "int8"
    return OpenvinoEngine(network, precision, options.threads, quantized, exact)


def _by_torch(files: ModelFiles, options: EngineOptions) -> tuple[Engine, TracedModel]:
    from dla.engines.torch import TorchEngine

    net, model = open_in_torch(files)
    scale_shift = model.preprocessing.scale_shift()
    return TorchEngine(net, *scale_shift, options.device, _computed(options), options.threads, options.photos), model
