"""A local Ray: the same files, dead actors, and nobody outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from socket import create_server

import pytest

from dla.bulk.manifest import plan
from dla.errors import UsageError
from support.bulk import bulk, files_in, own_process, photo_folder
from support.sockets import LISTEN, descendants, is_loopback, sockets

pytestmark = pytest.mark.slow


def environment_of(process: int) -> dict[str, str]:
    pairs = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def test_a_ray_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 photos, 3 of them damaged, and one SIGKILL of an actor."""
    photo_folder(tmp_path / "photos", 60, bad=3)
    plan([str(tmp_path / "photos")], str(tmp_path / "m.parquet"))
    flags = (tmp_path / "m.parquet", "--rows-per-shard", "10", "-q")
    with own_process(monkeypatch):
        assert bulk("predict", *flags, "-o", tmp_path / "local") == 1

    command = [sys.executable, "-m", "dla", "bulk", "predict", *map(str, flags), "-o", str(tmp_path / "ray")]
    with create_server(("127.0.0.1", 0)) as reports:
        reports.settimeout(0.01)
        environment = os.environ | {"RAY_USAGE_STATS_REPORT_URL": f"http://127.0.0.1:{reports.getsockname()[1]}"}
        environment.pop("RAY_USAGE_STATS_ENABLED", None)
        driver = subprocess.Popen([*command, "--runner", "ray"], env=environment, stderr=subprocess.PIPE, text=True,
                                  start_new_session=True)  # fmt: skip
        killed, listening, seen = set[int](), set[str](), set[str]()
        while driver.poll() is None:
            below = descendants(driver.pid)
            found = list(sockets(below))
            listening |= {local for local, _, state in found if state == LISTEN}
            seen |= {address for local, remote, state in found if state != LISTEN for address in (local, remote)}
            actors = {n for n in below if b"ray::_Actor" in command_line(n)}
            if not killed and actors and (parts := list((tmp_path / "ray").glob("part-*.parquet"))):
                assert len(parts) < 6
                killed.add(min(actors))
                os.kill(min(actors), signal.SIGKILL)
                raylet = next(
                    n for n in below if command_line(n).startswith(b"/") and b"raylet/raylet" in command_line(n)
                )
                token = environment_of(raylet)
                assert token["RAY_AUTH_MODE"] == "token"
                assert len(token["RAY_AUTH_TOKEN"]) == 64
            time.sleep(0.1)
        assert driver.stderr is not None
        told = driver.stderr.read()
        driver.stderr.close()
        with pytest.raises(TimeoutError):
            reports.accept()
    assert driver.returncode == 1, told
    assert killed
    assert listening
    assert all(map(is_loopback, listening)), listening
    assert all(is_loopback(address) for address in seen - {"0.0.0.0", "::"}), seen
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "local")


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
