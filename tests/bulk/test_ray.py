"""A local Ray: the same files, dead actors, and nobody outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from socket import create_server

import pytest

import dla
from dla.bulk.manifest import plan
from dla.errors import UsageError
from support.bulk import bulk, files_in, own_process, photo_folder
from support.sockets import LISTEN, descendants, is_loopback, sockets

pytestmark = pytest.mark.slow


DRIVER = """
import json, sys
import dla.bulk
from dla.bulk.ray_pool import import_ray
from dla.cli import main
if __name__ == "__main__":
    ray = import_ray(alone=True)
    end, ray.shutdown = ray.shutdown, lambda: None
    code = main(sys.argv[2:])
    import ray.data
    photos = ray.data.from_items([{"path": path} for path in json.loads(sys.argv[1])])
    predicted = photos.map_batches(dla.bulk.Predict, fn_constructor_kwargs={"topk": 1}, batch_size=4, concurrency=1)
    print(json.dumps(predicted.take_all()))
    end()
    sys.exit(code)
"""


def environment_of(process: int) -> dict[str, str]:
    pairs = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def test_a_ray_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 photos, 3 of them damaged, and one SIGKILL of an actor; then Ray Data with the same network."""
    photos = photo_folder(tmp_path / "photos", 60, bad=3)
    plan([str(tmp_path / "photos")], str(tmp_path / "m.parquet"))
    flags = (tmp_path / "m.parquet", "--rows-per-shard", "3", "-q")
    with own_process(monkeypatch):
        assert bulk("predict", *flags, "-o", tmp_path / "local") == 1

    command = [sys.executable, "-c", DRIVER, json.dumps([*photos[:5], "nope.jpg"]), "bulk", "predict", *map(str, flags)]
    with create_server(("127.0.0.1", 0)) as reports:
        reports.settimeout(0.01)
        environment = os.environ | {"RAY_USAGE_STATS_REPORT_URL": f"http://127.0.0.1:{reports.getsockname()[1]}"}
        environment.pop("RAY_USAGE_STATS_ENABLED", None)
        command += ["-o", str(tmp_path / "ray"), "--runner", "ray"]
        driver = subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  start_new_session=True)  # fmt: skip
        killed, listening, seen = set[int](), set[str](), set[str]()
        while driver.poll() is None:
            below = descendants(driver.pid)
            found = list(sockets(below))
            listening |= {local for local, _, state in found if state == LISTEN}
            seen |= {address for local, remote, state in found if state != LISTEN for address in (local, remote)}
            actors = {n for n in below if b"ray::_Actor" in command_line(n)}
            if not killed and actors and (parts := list((tmp_path / "ray").glob("part-*.parquet"))):
                assert len(parts) < 20
                killed.add(min(actors))
                os.kill(min(actors), signal.SIGKILL)
                raylet = next(
                    n for n in below if command_line(n).startswith(b"/") and b"raylet/raylet" in command_line(n)
                )
                token = environment_of(raylet)
                assert token["RAY_AUTH_MODE"] == "token"
                assert len(token["RAY_AUTH_TOKEN"]) == 64
            time.sleep(0.1)
        printed, told = driver.communicate()
        with pytest.raises(TimeoutError):
            reports.accept()
    assert driver.returncode == 1, told
    assert killed
    assert listening
    assert all(map(is_loopback, listening)), listening
    assert all(is_loopback(address) for address in seen - {"0.0.0.0", "::"}), seen
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "local")
    rows = json.loads(printed.splitlines()[-1])
    assert [row["path"] for row in rows] == [*photos[:5], "nope.jpg"]
    assert [row["error_code"] for row in rows] == [None] * 5 + ["not_found"]
    expected = [p.classes[0].class_id for p in dla.load().predict(photos[:5])]
    assert [row["class_ids"] for row in rows] == [*([class_id] for class_id in expected), []]


def command_line(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_ray_that_reports_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from dla.bulk.ray_pool import import_ray

    monkeypatch.setitem(sys.modules, "ray", object())
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    with pytest.raises(UsageError, match="Set RAY_USAGE_STATS_ENABLED=0 before"):
        import_ray(alone=True)
