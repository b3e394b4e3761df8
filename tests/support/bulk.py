"""Bulk runs for tests: photos of every kind, workers in the test's own process, a bucket on this machine."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
from moto.server import ThreadedMotoServer

from dla.bulk.schedule import WorkerDeath
from dla.bulk.shard import BulkJob, ShardResult, ShardTask, ShardWorker
from dla.cli import main
from dla.storage import stores
from support.photos import crops, jpeg

KEY, SECRET = "AKIDOFATEST012345678", "s3cr3tOfATest/abcdefghijklmnop+0123456789"


def photo_folder(folder: Path, count: int, bad: int = 2) -> list[str]:
    """A folder of small photos, of which the last `bad` are damaged; their paths in order."""
    folder.mkdir(parents=True)
    for n, crop in enumerate(crops(count)):
        data = jpeg(crop.resize((64, 64)))
        (folder / f"{n:04}.jpg").write_bytes(data if n < count - bad else b"no photo")
    return sorted(str(path) for path in folder.iterdir())


@dataclass(frozen=True)
class Planned:
    """Photos, their manifest, and the records of `dla predict` and the parts of `dla bulk predict` of them."""

    folder: Path
    photos: list[str]
    manifest: str
    records: bytes
    parts: dict[str, bytes]


ROWS = 5  # of a shard: the last one is shorter


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class OwnProcess:
    """A pool of one worker: this process. It can be told to die over rows."""

    deadly: frozenset[int] = frozenset()
    made: list[ShardTask]

    def __init__(self, job: BulkJob) -> None:
        self.worker, self.waiting = ShardWorker(job), deque[ShardTask]()

    def free(self) -> int:
        return 2 - len(self.waiting)

    def submit(self, task: ShardTask) -> None:
        self.waiting.append(task)

    def wait(self) -> list[ShardResult | WorkerDeath]:
        task = self.waiting.popleft()
        self.made.append(task)
        if self.deadly & (set(task.rows) - task.dead):
            return [WorkerDeath(task, True, "signal 11")]
        return [self.worker(task)]

    def close(self) -> None:
        pass


@contextmanager
def own_process(patch: pytest.MonkeyPatch, deadly: frozenset[int] = frozenset()) -> Iterator[list[ShardTask]]:
    """Make shards in this process; the tasks, in the order in which they were begun."""
    made: list[ShardTask] = []
    kind = type("Pool", (OwnProcess,), {"deadly": deadly, "made": made})

    @contextmanager
    def pool(job: BulkJob, options: object, shards: int) -> Iterator[OwnProcess]:
        yield kind(job)

    with patch.context() as patched:
        patched.setattr("dla.bulk.runners._pool", pool)
        yield made


def bulk(*words: str | Path) -> int:
    """The exit code of `dla bulk`."""
    return main(["bulk", *map(str, words)])


@contextmanager
def bucket(patch: pytest.MonkeyPatch, name: str = "photos") -> Iterator[stores.Store]:
    """A bucket in S3 by moto, on the loopback address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for variable in [variable for variable in os.environ if variable.startswith("AWS_")]:
        patch.delenv(variable)
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_REGION", "us-east-1")
    stores._arrow_store.cache_clear()
    try:
        from pyarrow.fs import S3FileSystem

        S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True).create_dir(name)
        yield stores.open_store(f"s3://{name}/")
    finally:
        urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()  # what is in it stays in this process
        server.stop()
        stores._arrow_store.cache_clear()
