"""Run a benchmark: every case once in each round, so that disturbances of the machine affect all of them alike."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import nn

from dla.benchmarking.baseline import BUSY_CORES, TIMM, BackgroundLoad, check_timm
from dla.benchmarking.rows import BenchReport, BenchRow, BenchSkipped, peak_flops, rows_of
from dla.benchmarking.worker import PEAK, BenchmarkCase, Round, Worker
from dla.catalog import ModelInfo, info
from dla.engines.cpu import instructions, machine
from dla.engines.quantized import quantize
from dla.engines.select import ENGINES, check_engine, installed
from dla.errors import UnavailableError, UnknownNameError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.inference.int8_store import FILE
from dla.inference.traced_model import open_traced
from dla.models.build import build
from dla.models.normalize import Normalize
from dla.options import BenchOptions, Precision, cores
from dla.types import DEFAULT_MODEL, NO_PROGRESS, Progress
from dla.version import __version__
from dla.weights.model_folder import ModelConfig, write_folder

ALL = "all"
AGAINST = (TIMM,)
LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """Every network with every engine, precision and batch. The fields are the arguments of `bench`.

    Raises:
        UsageError, UnavailableError: a value is not allowed, or a package is not installed.
    """

    models: tuple[str, ...]
    engine: str
    precision: str
    batches: tuple[int, ...]
    against: str | None
    threads: int | None
    rounds: int

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("nothing to measure: name a network, as in: dla bench dla34")
        if self.engine != ALL:
            check_engine(self.engine)
        precisions = (ALL, *get_args(Precision))
        if self.precision not in precisions:
            raise UnknownNameError("precision", self.precision, precisions, see=", ".join(precisions))
        if self.against is not None:
            if self.against not in AGAINST:
                raise UsageError(f"against is {self.against!r}. Allowed: {', '.join(AGAINST)}")
            check_timm()
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batch is {','.join(map(str, self.batches)) or 'empty'}: whole numbers from 1, as in 1,8")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"threads is {self.threads}: at least 1")
        if self.rounds < LEAST_ROUNDS:
            raise UsageError(f"rounds is {self.rounds}: at least {LEAST_ROUNDS}, of which the median is taken")

    @property
    def cases(self) -> tuple[tuple[str, str], ...]:
        """Return engine and precision of each row of one network and batch; the first is the baseline of the others."""
        engines = installed() if self.engine == ALL else (self.engine,)
        precisions = get_args(Precision) if self.precision == ALL else (self.precision,)
        first = () if self.against is None else ((self.against, "fp32"),)
        return first + tuple((engine, precision) for precision in precisions for engine in engines)


PAUSE_S = 0.3  # threads of the last case may still be spinning
CACHING = ("openvino", "onnx")  # engines that cache compiled networks
LOAD_S = 0.5  # time to measure the background load before the first round


def bench(
    models: Sequence[str] = (DEFAULT_MODEL,),
    *,
    engine: str = BenchOptions.engine,
    precision: str = BenchOptions.precision,
    batches: Sequence[int] = BenchOptions.batches,
    against: str | None = BenchOptions.against,
    threads: int | None = BenchOptions.threads,
    rounds: int = BenchOptions.rounds,
    progress: Progress = NO_PROGRESS,
) -> BenchReport:
    """Measure the speed of networks on the CPU. Takes some ten seconds per network, engine and batch size.

    Args:
        models: as in `dla.load`. A network of the table whose weights are not downloaded runs with random ones.
        engine: "openvino", "onnx", "torch", or "all" that are installed.
        precision: as in `dla.load`, or "all" that are possible.
        batches: the batch sizes.
        against: "timm" also measures timm's own network with the same weights.
        threads: compute threads; None: each engine's own choice.
        rounds: how often each case is measured.
        progress: receives each case of each round.

    Raises:
        UsageError, UnavailableError: no requested case can run on this machine; and as `dla.load`.
    """
    run = Bench(BenchmarkPlan(tuple(models), engine, precision, tuple(batches), against, threads, rounds))
    run.measure(progress)
    return run.report()


class Bench:
    """A run of `plan`. `rows` and `skipped` grow while `measure` runs."""

    def __init__(self, plan: BenchmarkPlan) -> None:
        self.plan = plan
        self.networks = {model: info(model) for model in plan.models}
        self.batches = tuple(dict.fromkeys(plan.batches))
        self.rows: list[BenchRow] = []
        self.skipped: list[BenchSkipped] = []
        self.peaks: list[float] = []
        self.background_load = BackgroundLoad()
        time.sleep(LOAD_S)
        self.background_load_before = self.background_load.cores()

    def measure(self, progress: Progress = NO_PROGRESS) -> None:
        """Measure everything, round by round.

        Raises:
            UsageError, UnavailableError: no requested engine can run one of the networks on this machine.
        """
        total = len(self.networks) * len(self.batches) * (1 + len(self.plan.cases)) * self.plan.rounds
        progress.start("measuring", total, "rounds")
        with tempfile.TemporaryDirectory() as aside, Worker(BenchmarkCase(PEAK)) as peak:
            peak.wait()
            for number, (model, described) in enumerate(self.networks.items()):
                source, cache = model, None
                if _has_no_weights(described):
                    source, cache = str(Path(aside, str(number))), str(Path(aside, "cache"))
                    write_random_model(described.architecture, Path(source))
                    if ("openvino", "int8") in self.plan.cases:
                        add_random_int8(Path(source))
                for batch in self.batches:
                    self._group(model, source, cache, batch, peak, progress)

    def _group(self, model: str, source: str, cache: str | None, batch: int, peak: Worker, progress: Progress) -> None:
        """Measure one network at one batch size: each of its cases once per round."""
        with ExitStack() as stack:
            workers = self._start(stack, model, source, cache, batch)
            progress.advance((len(self.plan.cases) - len(workers)) * self.plan.rounds)  # the skipped cases
            rounds: dict[Worker, list[Round]] = {worker: [] for worker in (peak, *workers)}
            for _ in range(self.plan.rounds):
                for worker, done in rounds.items():
                    time.sleep(PAUSE_S)
                    done.append(worker.run_round())
                    progress.advance()
        flops = peak_flops(rounds.pop(peak))
        self.peaks.append(flops)
        measured = {worker.case: done for worker, done in rounds.items()}
        described = self.networks[model]
        self.rows += rows_of(model, described, _has_no_weights(described), measured, flops)

    def _start(self, stack: ExitStack, model: str, source: str, cache: str | None, batch: int) -> list[Worker]:
        """Start the cases that can run on this machine, and record why the others are skipped."""
        started, errors = [], []
        size = self.networks[model].input_size[1:]
        for engine, precision in self.plan.cases:
            case = BenchmarkCase(engine, source, precision, batch, size, self.plan.threads)
            try:
                if engine in CACHING:
                    with Worker(case, cache) as first:  # fills the cache, so that compiling does not count as memory
                        first.wait()
                worker = stack.enter_context(Worker(case, cache))
                worker.wait()
                started.append(worker)
            except (UsageError, UnavailableError) as error:
                if engine == TIMM and isinstance(error, UnavailableError):
                    raise  # every other network would fail in the same way
                errors.append(error)
                # random weights are in a temporary folder, whose path means nothing to the user
                reason = str(error).replace(source, model).partition(". Try")[0]
                skipped = BenchSkipped(model, engine, precision, reason)
                if skipped not in self.skipped:
                    self.skipped.append(skipped)
        if errors and all(worker.case.engine == TIMM for worker in started):
            raise next((error for error in errors if isinstance(error, UnavailableError)), errors[-1])
        return started

    def report(self) -> BenchReport:
        """Return what was measured so far.

        The peak is that of an idle machine, so shares of it are left out unless this one was seen to be idle.
        """
        load = self.background_load.cores()
        idle = load is not None and load <= BUSY_CORES
        rows = self.rows if idle else [replace(row, fraction_of_peak=None) for row in self.rows]
        return BenchReport(
            machine=machine(),
            instructions=instructions(),
            cores=cores(),
            threads=self.plan.threads,
            rounds=self.plan.rounds,
            versions=_versions({row.engine for row in self.rows}),
            peak_gflops=statistics.median(self.peaks) / 1e9,
            background_load_before=self.background_load_before,
            background_load_during=load,
            rows=tuple(rows),
            skipped=tuple(self.skipped),
        )


def _has_no_weights(described: ModelInfo) -> bool:
    return described.weights.state in ("none", "to download")


def _versions(engines: set[str]) -> dict[str, str]:
    packages = {package for engine in engines for package in ENGINES.get(engine, (engine,))}
    return {"dla": __version__} | {package: version(package) for package in sorted(packages)}


PHOTOS, SIDE = 8, 128  # noise images, and their side in pixels


def write_random_model(architecture: str, folder: Path) -> None:
    """Write a model folder with random weights and 1000 classes.

    Batch-norm has the statistics of noise images, so that no activations vanish or overflow: CPUs are many times slower
    with denormal numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(architecture).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (PHOTOS, SIDE, SIDE, 3), np.uint8)
    with torch.no_grad():
        model(Normalize(*Preprocessing().scale_shift())(torch.from_numpy(pixels_NHW3)))
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in ("url", "hf_hub_id")}
    write_folder(folder, model.state_dict(), ModelConfig(architecture, model.num_classes, pretrained_cfg=cfg))


def add_random_int8(folder: Path) -> None:
    """Add an int8 model to a folder of random weights, if NNCF is installed. It has passed no gate."""
    network, opened = open_traced(str(folder))
    noise = np.random.default_rng(0).integers(0, 256, (PHOTOS, *opened.preprocessing.size, 3), np.uint8)
    with suppress(UnavailableError):
        (folder / FILE).write_bytes(quantize(network, list(noise)).to_bytes())
