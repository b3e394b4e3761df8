"""Select the fastest engine for one network on this machine, by a cached measurement."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from dla.engines.base import Engine, whole_network
from dla.engines.cpu import machine
from dla.engines.graph import Network
from dla.errors import DamagedError, UnavailableError, UnknownNameError, pip_line
from dla.storage import cache
from dla.storage.files import JsonObject, parse_json
from dla.types import Array


@dataclass(frozen=True, slots=True)
class EngineTiming:
    """Seconds that one engine takes with one network: to its first result, for one photo, per photo of many."""

    engine: str
    cold_start_s: float
    latency_s: float
    per_photo_s: float


# In order of preference where nothing was measured, with the packages that each needs.
ENGINES: Mapping[str, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("onnxruntime", "onnx"),
    "torch": ("torch",),
}

TITLES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime", "torch": "PyTorch"}  # `Engine.name` starts with these

KIND = "timings"
BATCH, ROUNDS, ROUND_S = 8, 3, 0.15


def installed() -> tuple[str, ...]:
    """Return the engines whose packages are installed, in order of preference."""
    return tuple(name for name, packages in ENGINES.items() if all(map(find_spec, packages)))


def check_engine(name: str) -> None:
    """Check that an engine can be used.

    Raises:
        UnknownNameError: no engine has this name.
        UnavailableError: its packages are not installed.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ("auto", *ENGINES), see=f"auto, {', '.join(ENGINES)}")
    if name not in installed():
        raise UnavailableError(f"the engine {name} is not installed: {engine_pip_line(name)}")


def engine_pip_line(name: str) -> str:
    """Return the command that installs an engine."""
    return pip_line("engines") if name == "onnx" else f"pip install {name}"


def select_fastest(timings: Sequence[EngineTiming], photos: int | None) -> EngineTiming:
    """Return the timing of the fastest engine for this many photos; None means many.

    For a single photo PyTorch is left out: importing it takes longer than any engine.
    """
    if photos == 1:
        return min((t for t in timings if t.engine != "torch"), key=lambda t: t.cold_start_s, default=timings[0])
    return min(timings, key=lambda t: t.per_photo_s)


class EngineBenchmark:
    """Time the installed engines with one network, and cache the result for this machine and these versions.

    Args:
        make: builds the engine of that name.
        size: height and width of the network's photos.
    """

    def __init__(self, make: Callable[[str], Engine], network: Network, size: tuple[int, int], threads: int) -> None:
        self.make, self.names, self.dense = make, installed(), network.is_dense
        self.pixels_NHW3 = np.full((BATCH, *size, 3), 128, np.uint8)
        versions = (f"{package} {version(package)}" for name in self.names for package in ENGINES[name])
        self.key = cache.key_of(network.key, str(size), str(threads), machine(), *versions)

    def recall(self) -> tuple[EngineTiming, ...]:
        """Return the cached measurement; empty if there is none."""
        data = cache.read(KIND, self.key)
        try:
            saved = JsonObject({"timings": parse_json(data or b"[]", KIND)}, KIND).objects("timings")
            return tuple(_timing(timing) for timing in saved if timing.fields.get("engine") in self.names)
        except DamagedError:
            return ()

    def seconds_each(self, engine: Engine) -> float:
        """Estimate the seconds that one engine takes per photo of many."""
        run = whole_network(engine, self.dense)
        run(self.pixels_NHW3)
        return _seconds(run, self.pixels_NHW3) / BATCH

    def run(self) -> tuple[EngineTiming, ...]:
        """Measure every engine, in alternation, and cache the result; takes a second or two per engine."""
        first, engines = dict[str, float](), dict[str, Callable[[Array], Array]]()
        for name in self.names:
            began = time.perf_counter()
            engines[name] = whole_network(self.make(name), self.dense)
            engines[name](self.pixels_NHW3[:1])
            first[name] = time.perf_counter() - began
        single = self._rounds(engines, self.pixels_NHW3[:1])
        batch = self._rounds(engines, self.pixels_NHW3)
        timings = tuple(EngineTiming(name, first[name], single[name], batch[name] / BATCH) for name in self.names)
        cache.write(KIND, self.key, json.dumps([asdict(timing) for timing in timings]).encode())
        return timings

    def _rounds(self, engines: Mapping[str, Callable[[Array], Array]], pixels_NHW3: Array) -> dict[str, float]:
        """Return the median seconds per batch of each engine, over rounds that run every engine once."""
        for run in engines.values():
            run(pixels_NHW3)
        rounds = [{name: _seconds(run, pixels_NHW3) for name, run in engines.items()} for _ in range(ROUNDS)]
        return {name: statistics.median(seconds[name] for seconds in rounds) for name in engines}


def _timing(saved: JsonObject) -> EngineTiming:
    seconds = (saved.get(f.name, (int, float), "a number above 0", lambda s: s > 0) for f in fields(EngineTiming)[1:])
    return EngineTiming(saved.get("engine", str, "an engine"), *seconds)


def _seconds(run: Callable[[Array], Array], pixels_NHW3: Array) -> float:
    began, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < ROUND_S:
        run(pixels_NHW3)
        count += 1
    return passed / count
