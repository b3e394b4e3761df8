"""From the name of a model to an engine that runs it."""

from __future__ import annotations

from dataclasses import dataclass
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

__all__ = ["EngineChoice", "open_engine", "time_engines"]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What was timed, which engine `auto` takes for one photo and for many, and the engines that are not installed."""

    timings: tuple[EngineTiming, ...]
    best_for_one: str
    best_for_many: str
    not_installed: tuple[str, ...] = ()


WORTH_MEASURING_S = 10.0  # of a run that is expected to take so long, a second or two go into the choice
FEW = 16  # photos, which do not take so long: not even an estimate is worth its time


def open_engine(
    source: str | ModelFiles, options: EngineOptions, progress: Progress = NO_PROGRESS
) -> tuple[Engine, TracedModel]:
    """The engine that the options mean, with the network that `source` names; `progress` is told of what is fetched.

    Raises:
        UsageError: bf16 where there is no instruction for it; and as `dla.load`.
        UnavailableError: int8, and the network has no int8 model.
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
    """What engines compute in that have no model of reduced precision."""
    return "fp32" if options.precision == "auto" else options.precision


def _by_torch_only(options: EngineOptions) -> bool:
    """Whether it has to be PyTorch: it or a GPU was asked for, or there is one, and more to do than one photo."""
    if options.precision == "int8":
        return False
    if options.engine != "auto" or options.device not in ("auto", "cpu"):
        return options.engine in ("auto", "torch")
    return installed() == ("torch",) or (options.device == "auto" and options.photos != 1 and has_gpu())


def _quantized(
    files: ModelFiles, network: Network, model: TracedModel, options: EngineOptions
) -> QuantizedModel | None:
    """The int8 model that is to run: the one that was asked for, or one that passed on a CPU like this."""
    from dla.inference.int8_store import find_quantized, not_quantized_error  # here, because most runs are in fp32

    try:
        form = find_quantized(network, model)
    except DamagedError:
        if options.precision == "int8":
            raise
        return None  # as where none passed
    if options.precision == "int8":
        if form is None:
            raise not_quantized_error(files.name)
        return form
    return form if form is not None and form.passed_here else None


def time_engines(source: str | ModelFiles) -> EngineChoice:
    """Every engine with the network that `source` names, timed anew; the outcome is what `auto` goes by from now on."""
    one, many = EngineOptions(photos=1), EngineOptions()
    files = open_files(source)
    network, model = open_traced(files)
    timings = _stopwatch(files, network, model, many).run()
    best_for_one, best_for_many = (
        "torch" if _by_torch_only(options) else select_fastest(timings, options.photos).engine
        for options in (one, many)
    )
    return EngineChoice(
        timings, best_for_one, best_for_many, tuple(name for name in ENGINES if name not in installed())
    )


def _stopwatch(files: ModelFiles, network: Network, model: TracedModel, options: EngineOptions) -> EngineBenchmark:
    threads = options.threads or cores()
    return EngineBenchmark(
        lambda name: _make(name, files, network, options), network, model.preprocessing.size, threads
    )


def _fastest(files: ModelFiles, network: Network, model: TracedModel, options: EngineOptions) -> Engine:
    """By what was measured before; else the first one, unless there is so much to do that measuring pays."""
    stopwatch = _stopwatch(files, network, model, options)
    timings = stopwatch.recall()
    if not timings:
        usual = _make(installed()[0], files, network, options)
        if (
            options.photos is None
            or options.photos < FEW
            or options.photos * stopwatch.seconds_each(usual) < WORTH_MEASURING_S
        ):
            return usual
        timings = stopwatch.run()
    return _make(select_fastest(timings, options.photos).engine, files, network, options)


def _make(name: str, files: ModelFiles, network: Network, options: EngineOptions) -> Engine:
    if name == "torch":
        return _by_torch(files, options)[0]
    if name == "onnx":
        from dla.engines.onnx import OnnxEngine

        return OnnxEngine(network, _computed(options), options.threads)
    return _openvino(network, options)


def _openvino(network: Network, options: EngineOptions, quantized: Any = None) -> Engine:
    from dla.engines.openvino import OpenvinoEngine

    exact = options.precision == "auto"  # features, which no int8 model has
    return OpenvinoEngine(
        network, _computed(options) if quantized is None else "int8", options.threads, quantized, exact
    )


def _by_torch(files: ModelFiles, options: EngineOptions) -> tuple[Engine, TracedModel]:
    from dla.engines.torch import TorchEngine

    net, model = open_in_torch(files)
    scale_shift = model.preprocessing.scale_shift()
    return TorchEngine(net, *scale_shift, options.device, _computed(options), options.threads, options.photos), model
