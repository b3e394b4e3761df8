"""Weights from a mirror, as docs/ship.md describes it: a cache that examples/mirror.py serves, and a plain server."""

from __future__ import annotations

import functools
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.hub_server import Hub

pytestmark = pytest.mark.slow

REPO, WEIGHTS = "timm/dla46_c.in1k", os.urandom(100_000)
FILES = {"config.json": b'{"architecture": "dla46_c"}', "model.safetensors": WEIGHTS}
MIRROR = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "mirror.py"))


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """The address of a server that answers in a thread."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def pull(name: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HOME": str(home), "HF_ENDPOINT": endpoint,
           "NO_PROXY": "*", "HF_HUB_ETAG_TIMEOUT": "120"}  # fmt: skip
    return subprocess.run([sys.executable, "-m", "dla", "pull", name], env=env, capture_output=True, text=True)


@pytest.fixture
def cache(hub: Hub, tmp_path: Path) -> Path:
    """The cache of a machine that reached the hub."""
    hub.add(REPO, FILES)
    assert pull("dla46_c", hub.endpoint, tmp_path / "first").returncode == 0
    return tmp_path / "first" / "hub"


def test_a_cache_is_served_as_a_hub(cache: Path, tmp_path: Path) -> None:
    """The same files under the same commit and digests, so that they are verified as the hub's own."""
    with running(MIRROR["serve"](cache, "127.0.0.1", 0)) as endpoint:
        assert pull("dla46_c", endpoint, tmp_path / "second").returncode == 0
        unknown = pull("dla60", endpoint, tmp_path / "second")
    copy = tmp_path / "second" / "hub"
    first, second = ({str(p.relative_to(top)): (os.readlink(p) if p.is_symlink() else p.read_bytes())
                      for p in top.glob("models--*/**/*") if p.is_file() and ".no_exist" not in p.parts}
                     for top in (cache, copy))  # fmt: skip
    assert first == second
    assert WEIGHTS in first.values()
    assert unknown.returncode == 3
    assert f"(404 for {endpoint}/timm/dla60.in1k/resolve/main/config.json)" in unknown.stderr


def test_the_headers_that_a_mirror_needs(cache: Path, tmp_path: Path) -> None:
    """Files in the layout alone do not do, nor without a commit; with both headers a static server does."""
    (commit,) = (folder.name for folder in cache.glob("models--*/snapshots/*"))
    for revision in ("main", commit):
        folder = tmp_path / "www" / REPO / "resolve" / revision
        folder.mkdir(parents=True)
        for name, data in FILES.items():
            (folder / name).write_bytes(data)

    class Static(SimpleHTTPRequestHandler):
        extra: tuple[str, ...] = ()

        def end_headers(self) -> None:
            values = {"ETag": f'"6927-{len(FILES[Path(self.path).name]):x}"', "X-Repo-Commit": commit}
            for key in self.extra:
                self.send_header(key, values[key])
            super().end_headers()

    answers = []
    with running(ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Static, directory=tmp_path / "www"))) as url:
        for extra in ((), ("ETag",), ("X-Repo-Commit",), ("ETag", "X-Repo-Commit")):
            Static.extra = extra
            answers.append(pull("dla46_c", url, tmp_path / "-".join(("home", *extra))))
    for refused in answers[:3]:
        assert refused.returncode == 3
        said = f"{url}/{REPO}/resolve/main/config.json is answered without the header ETag or X-Repo-Commit"
        assert said in refused.stderr
    assert answers[3].returncode == 0, answers[3].stderr
    (file,) = (tmp_path / "home-ETag-X-Repo-Commit").rglob("model.safetensors")
    assert file.read_bytes() == WEIGHTS
