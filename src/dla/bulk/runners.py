"""Run a bulk job from start to finish: resolve it once, find the missing shards, make them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from dla.bulk.manifest import Manifest
from dla.bulk.run_file import RUN_FILE, BulkRun, OutputFolder
from dla.bulk.schedule import Scheduler, WorkerPool
from dla.bulk.shard import BulkJob, ShardTask, check_settings, described_run, open_network
from dla.errors import OnlyTorchError, UsageError
from dla.options import BulkOptions, cores
from dla.types import NO_PROGRESS, Progress

AGAIN = ("worker_died", "read_error")  # errors that another try may not have
_READERS = 16  # threads that read the metadata of parts


@dataclass(frozen=True)
class ShardsDone:
    """Photos that have their records: of `earlier` runs, or those of one more shard; and their errors by code.

    `worker` is the node of a Ray cluster that made the shard.
    """

    photos: int
    errors: Counter[str]
    earlier: bool = False
    worker: str = ""


def shards_of(run: BulkRun, options: BulkOptions) -> range:
    """Return the shards that the option `shard` leaves to this run."""
    index, count = options.shard_of
    return range(index, run.shards, count)


def resolve(job: BulkJob, rows_per_shard: int, settings: Mapping[str, Any]) -> tuple[BulkJob, Any]:
    """Load the network, and settle everything that decides a bit; return the job with its run, and the network.

    A run that the output has already decides what "auto" means.

    Raises:
        UsageError: the output has another run.
        UnavailableError, DamagedError: the manifest, the network or `run.json` cannot be read.
    """
    len(Manifest(job.manifest))  # before anything slow
    output = OutputFolder(job.output)
    before = output.run()
    options = dict(job.load_options)
    if before is not None and before.command == job.command:
        old = before.settings
        for name in ("engine", "precision"):
            if options[name] == "auto":
                options[name] = old.get(name)
    job = replace(job, load_options=options)
    network = _opened(job)
    if job.command == "features":
        settings = {**settings, "shape": list(network.features_shape(settings["at"]))}
    elif job.command == "segment":
        settings = {**settings, "class_ids": [c.class_id for c in network.classes]}
    elif job.command == "edges" and settings["threshold"] is None:
        settings = {**settings, "threshold": network.threshold}
    check_settings(network, job.command, settings)
    run = described_run(job, network, rows_per_shard, settings)
    if before is not None:
        before.check_same(run, job.output)
        run = before
    options |= {name: run.settings[name] for name in ("engine", "precision")}
    return replace(job, run=run, load_options=options), network


def _opened(job: BulkJob) -> Any:
    if job.load_options["engine"] != "auto":
        return open_network(job)
    from dla.engines.cpu import has_gpu
    from dla.engines.select import installed

    # not the fastest here, which may be another one on the next machine
    first = "torch" if job.load_options["device"] == "auto" and has_gpu() else installed()[0]
    try:
        return open_network(replace(job, load_options={**job.load_options, "engine": first}))
    except OnlyTorchError:
        return open_network(replace(job, load_options={**job.load_options, "engine": "torch"}))


def run_bulk(job: BulkJob, options: BulkOptions, progress: Progress = NO_PROGRESS) -> Iterator[ShardsDone]:
    """Make the missing shards of a resolved job, and yield first what was there, then each shard that was made.

    Raises:
        DlaError, OSError: the run broke. What is written stays; the same call goes on.
    """
    run = job.run
    assert run is not None
    output, mine = OutputFolder(job.output), shards_of(run, options)
    output.create()
    if output.run() is None:
        output.write(RUN_FILE, run.content)
    there = output.shards() & set(mine)
    errors, again = _earlier(output, run, sorted(there), options.retry_failed)
    there -= again
    yield ShardsDone(_photos(run, there), errors, earlier=True)
    missing = [shard for shard in mine if shard not in there]
    doing = "predicting" if job.command == "predict" else "computing"
    progress.start(doing, _photos(run, missing))
    if missing:
        tasks = (ShardTask(shard, run.rows_of(shard)) for shard in missing)
        with _pool(job, options, len(missing)) as pool:
            for result in Scheduler(pool, tasks, progress).results():
                progress.advance(len(result.task.rows))
                progress.note(doing)  # into the log of a job, now and then, with the rate and the time left
                yield ShardsDone(len(result.task.rows), result.errors, worker=result.worker)


def photos_of_run(job: BulkJob, options: BulkOptions) -> int:
    """Return the number of photos that this run has to answer."""
    assert job.run is not None
    return _photos(job.run, shards_of(job.run, options))


def prepare_output(uri: str, *, force: bool) -> None:
    """Check the output before anything slow; with `force` remove the run that it has.

    Raises:
        UsageError: it has files, but no run.
    """
    output = OutputFolder(uri)
    if force:
        output.remove()
    elif output.shards() and output.run() is None:
        raise UsageError(f"{uri} has parts, but no run.json that says what made them. --force removes them")


def _photos(run: BulkRun, shards: Iterable[int]) -> int:
    return sum(len(run.rows_of(shard)) for shard in shards)


def _earlier(output: OutputFolder, run: BulkRun, there: Sequence[int], retry: bool) -> tuple[Counter[str], set[int]]:
    """Return the errors in the parts that are there, and the shards to make again."""
    errors, again = Counter[str](), set[int]()

    def look(shard: int) -> tuple[Counter[str], bool]:
        part = output.part(shard, metadata_only=True)
        return part.errors, part.metadata.get("run_sha256") == run.sha256

    with ThreadPoolExecutor(_READERS) as readers:
        for shard, (found, same) in zip(there, readers.map(look, there), strict=True):
            if not same or (retry and any(code in found for code in AGAIN)):
                again.add(shard)
            else:
                errors += found
    return errors, again


@contextmanager
def _pool(job: BulkJob, options: BulkOptions, shards: int) -> Iterator[WorkerPool]:
    if options.runner == "ray":
        from dla.bulk.ray_pool import open_ray

        with open_ray(job, options.address, shards) as pool:
            yield pool
        return
    from dla.bulk.local_pool import LocalPool

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    on_cpu = job.run is None or job.run.settings["device"] == "cpu"
    count = options.processes or (max(1, cores() // job.load_options["threads"]) if on_cpu else 1)
    local = LocalPool(job, min(count, shards))
    try:
        yield local
    finally:
        local.close()
