"""Processes of this machine: photos that kill them, signals, full disks, killed drivers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dla.bulk.local_pool import MOST_STARTS, LocalPool, portable
from dla.bulk.manifest import plan
from dla.bulk.schedule import WorkerDeath
from dla.bulk.shard import BulkJob, ShardTask
from dla.errors import DlaError, UsageError
from support.bulk import ROWS, Planned, bulk, files_in

pytestmark = pytest.mark.slow


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def workers(process: int) -> list[int]:
    return [c for c in children(process) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_driver_and_a_worker_are_killed_and_a_photo_kills(planned: Planned, tmp_path: Path) -> None:
    """One run goes through everything, and its files are those of an undisturbed one."""
    killer = tmp_path / "killer.jpg"
    killer.symlink_to(planned.photos[0])
    inputs = [*planned.photos[:7], str(killer), *planned.photos[7:]]
    plan(inputs, str(tmp_path / "m.parquet"))
    (tmp_path / "sitecustomize.py").write_text(KILLER)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "dla", "bulk", "predict", str(tmp_path / "m.parquet"), "-o", str(tmp_path / "out"),
               "--rows-per-shard", "2", "--processes", "2"]  # fmt: skip
    out = tmp_path / "out"

    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: list(out.glob("part-*.parquet")))
    left = workers(driver.pid)
    driver.kill()
    driver.wait()
    assert driver.stderr is not None
    driver.stderr.close()
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in left))  # they end with it

    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    until(lambda: workers(driver.pid))
    os.kill(workers(driver.pid)[0], signal.SIGKILL)
    _, told = driver.communicate()
    assert driver.returncode == 1, told
    assert "15 answered, 3 failed (2 not_an_image, 1 worker_died" in told
    assert bulk("collect", out, "-o", tmp_path / "all.jsonl", "-q") == 1
    records = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in planned.records.splitlines()]
    assert records[7]["error"]["code"] == "worker_died"
    assert records[:7] + records[8:] == expected


KILLER = """\
import os, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith("killer.jpg"):
        os.kill(os.getpid(), 9)
sys.addaudithook(hook)
"""


def test_a_signal_to_end(planned: Planned, tmp_path: Path) -> None:
    out, manifest = tmp_path / "out", str(tmp_path / "m.parquet")
    plan(planned.photos * 30, manifest)  # enough that it does not end by itself
    command = [sys.executable, "-m", "dla", "bulk", "predict", manifest, "-o", str(out), "--rows-per-shard=1",
               "--processes=1"]  # fmt: skip
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until(lambda: list(out.glob("part-*.parquet")))
    left = workers(driver.pid)
    driver.terminate()
    _, told = driver.communicate()
    assert driver.returncode == 143
    assert "; the same command continues the run" in told
    assert not any(Path(f"/proc/{child}").exists() for child in left)
    assert not [name for name in files_in(out) if name.startswith(".")]


def job(planned: Planned, output: Path) -> BulkJob:
    from dla.bulk.run_file import OutputFolder

    run = OutputFolder(str(planned.folder / "out")).run()
    options = {"device": "auto", "engine": "openvino", "precision": "fp32", "threads": 1}
    return BulkJob("predict", "shipped:tiny200", options, planned.manifest, str(output), 0, os.getcwd(), run)


def test_what_ends_a_worker(planned: Planned, tmp_path: Path) -> None:
    """SIGTERM does not count; an error of the disk ends the run, with its words."""
    (tmp_path / "out").mkdir()
    pool = LocalPool(job(planned, tmp_path / "out"), 1)
    try:
        task = ShardTask(0, range(ROWS))
        for number in (signal.SIGTERM, signal.SIGKILL):  # while it loads: that is no photo's fault
            pool.submit(task)
            os.kill(pool.workers[0].process.pid, number)
            assert pool.wait() == [WorkerDeath(task, False, f"signal {int(number)}")]
        for number, by_itself in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
            long = ShardTask(0, range(len(planned.photos)), write=False)
            pool.submit(long)
            until(lambda: pool._events() or pool.workers[0].loaded)
            os.kill(pool.workers[0].process.pid, number)
            assert pool.wait() == [WorkerDeath(long, by_itself, f"signal {int(number)}")]
        pool.submit(task)
        (done,) = pool.wait()
        assert done.errors == {}  # type: ignore[union-attr]
        assert files_in(tmp_path / "out") == {"part-000000.parquet": planned.parts["part-000000.parquet"]}
        (tmp_path / "out").rename(tmp_path / "gone")
        pool.submit(task)
        with pytest.raises(OSError, match="No such file") as caught:
            pool.wait()
        assert str(caught.value.filename).startswith(str(tmp_path / "out"))
    finally:
        pool.close()


def test_processes_that_cannot_load_end_the_run(planned: Planned, tmp_path: Path) -> None:
    pool = LocalPool(job(planned, tmp_path / "out"), 1)
    try:

        def begin_and_kill() -> None:
            pool.submit(ShardTask(0, range(ROWS)))
            pool.workers[0].process.kill()
            pool.wait()

        for _ in range(MOST_STARTS):
            begin_and_kill()
        with pytest.raises(DlaError, match="die while they load the network .signal 9"):
            begin_and_kill()
    finally:
        pool.close()


def test_errors_that_cross_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(portable(UsageError("no such thing"))))
    assert (type(error), str(error), error.exit_code) == (UsageError, "no such thing", 2)
    full = pickle.loads(pickle.dumps(portable(OSError(28, "No space left on device", "out/part-000000.parquet"))))
    assert (full.errno, full.filename) == (28, "out/part-000000.parquet")
    with pytest.raises(KeyError) as mistake:
        {}["ours"]
    assert "test_errors_that_cross_processes" in str(portable(mistake.value))
