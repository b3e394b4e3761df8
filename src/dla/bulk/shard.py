"""Answer the rows of one shard and write its part. Doing it twice gives the same bytes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dla.bulk.manifest import Manifest
from dla.bulk.parts import PartWriter, part_name
from dla.bulk.run_file import BulkRun, OutputFolder, installed_versions
from dla.engines.cpu import instructions
from dla.errors import InputError, UsageError
from dla.images.located import LocatedPhoto, PhotoPlace
from dla.inference.classifier import load

_ENGINES = {"OpenVINO": "openvino", "ONNX Runtime": "onnx", "PyTorch": "torch"}


@dataclass(frozen=True)
class BulkJob:
    """What a worker needs; it is sent to other processes and machines.

    model: the network's name or path, the same on all machines.
    load_options: keyword arguments of `dla.load`.
    workers: threads that read photos.
    folder: the working directory, to which relative paths refer.
    run: None while the run is being resolved.
    """

    command: str
    model: str
    load_options: Mapping[str, Any]
    manifest: str
    output: str
    workers: int
    folder: str
    run: BulkRun | None = None


@dataclass(frozen=True)
class ShardTask:
    """The rows of a shard to answer. Its part is written if `write`; the rows in `dead` get the error worker_died."""

    shard: int
    rows: range
    dead: frozenset[int] = frozenset()
    write: bool = True


@dataclass(frozen=True)
class ShardResult:
    """What became of a task: the number of errors by code, and where it was done."""

    task: ShardTask
    errors: Counter[str] = field(default_factory=Counter)
    worker: str = ""


def open_network(job: BulkJob) -> Any:
    """Load the network of a job, and run it once as it will run on batches: OpenVINO compiles for one or for many."""
    task = {"predict": "classify", "features": None}.get(job.command, job.command)
    network = load(job.model, task=task, **job.load_options)
    network.engine.own_process()
    if job.command == "predict":
        network.probabilities(np.zeros((2, *network.preprocessing.size, 3), np.uint8))
    return network


def described_run(job: BulkJob, network: Any, rows_per_shard: int, settings: Mapping[str, Any]) -> BulkRun:
    """Return the run of a job with this network; `settings` are the options that the records depend on."""
    import hashlib

    manifest = Manifest(job.manifest)
    engine = engine_name(network.engine)
    precision = getattr(network.engine, "precision", "fp32")
    model = {
        "architecture": network.config.architecture,
        "config_sha256": hashlib.sha256(network.config.to_json().encode()).hexdigest(),
        "weights_sha256": network.sha256,
    }
    if precision == "int8" or network.engine.name.endswith("int8"):
        precision, model["int8_sha256"] = "int8", _constants_sha256(network.engine.quantized)
    computed = {"engine": engine, "precision": precision, "device": network.engine.name.partition(" on ")[2].split()[0]}
    computed["threads"] = job.load_options["threads"]
    config = {
        "schema": "dla.bulk.run/1",
        "command": job.command,
        "manifest": {"sha256": manifest.sha256, "rows": len(manifest)},
        "rows_per_shard": rows_per_shard,
        "model": model,
        "settings": {**settings, **computed},
        "versions": installed_versions(engine, job.command),
        "instructions": list(instructions()),
    }
    return BulkRun(config)


def engine_name(engine: Any) -> str:
    """Return the name of an engine as --engine takes it."""
    return next(name for title, name in _ENGINES.items() if engine.name.startswith(title))


def _constants_sha256(model: Any) -> str:
    """Return the hash of the numbers in an `openvino.Model`."""
    import hashlib

    digest = hashlib.sha256()
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Constant":
            digest.update(np.ascontiguousarray(op.data).tobytes())
    return digest.hexdigest()


class ShardWorker:
    """Answers shards, one after the other. Making one loads the network.

    Raises:
        UsageError: the network or the versions here are not those of the run.
    """

    def __init__(self, job: BulkJob) -> None:
        assert job.run is not None
        self.job, self.run = job, job.run
        if os.path.isdir(job.folder):
            os.chdir(job.folder)
        self.manifest = Manifest(job.manifest)
        self.network = open_network(job)
        here = described_run(job, self.network, self.run.rows_per_shard, _own_settings(self.run))
        self.run.check_same(here, job.output)
        same = here.config["instructions"] == self.run.config["instructions"]
        self.about = {} if same else {"instructions": " ".join(here.config["instructions"])}
        self.output = OutputFolder(job.output)

    def __call__(self, task: ShardTask) -> ShardResult:
        """Answer the rows of a task, and write the part of its shard.

        Raises:
            StoreError, OSError: the store does not answer, or the part cannot be written.
        """
        writer = PartWriter(self.run.part_format, task.rows.start)
        for record in self._answers(task):
            writer.add(record)
        if task.write:
            self.output.write(part_name(task.shard), writer.encoded(self.run.sha256, self.about))
        return ShardResult(task, writer.errors)

    def _answers(self, task: ShardTask) -> Iterator[Any]:
        photos: list[str] = self.manifest.photos(task.rows.start, task.rows.stop)
        for row in task.dead:
            name = str(photos[row - task.rows.start])
            message = "the process that read it died, each time it was tried. Look at it on another machine"
            photos[row - task.rows.start] = LocatedPhoto(name, PhotoPlace(name), InputError("worker_died", message))
        yield from answers(self.network, self.job.command, photos, self.run.settings, self.job.workers)


def _own_settings(run: BulkRun) -> dict[str, Any]:
    return {k: v for k, v in run.settings.items() if k not in ("engine", "precision", "device", "threads")}


def answers(network: Any, command: str, photos: Any, settings: Mapping[str, Any], workers: int) -> Iterator[Any]:
    """Yield the record of each photo, by the ordinary functions.

    Raises:
        UsageError: an option is out of range, or the network cannot do this.
    """
    read = {key: settings[key] for key in ("allow_truncated", "max_pixels", "max_bytes")} | {"workers": workers}
    if command == "predict":
        yield from network.predict(photos, settings["topk"], batch_size=settings["batch_size"], **read)
    elif command == "features":
        yield from network.features(photos, settings["at"], batch_size=settings["batch_size"], **read)
    else:
        own = {key: settings[key] for key in ("size", "tile", "threshold") if key in settings}
        yield from network(photos, **own, **read)


def check_settings(network: Any, command: str, settings: Mapping[str, Any]) -> None:
    """Raise a UsageError if an option is out of range, or the network cannot do this."""
    if command == "features" and settings["at"] is None:
        raise UsageError("--at is missing")
    list(answers(network, command, (), settings, 0))
