"""A hub that names files as it should not: nothing outside the cache is written or removed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from dla.cli import main

pytestmark = pytest.mark.slow

CONFIG = b'{"architecture": "dla34", "num_classes": 10}'


class Hub:
    """What the server below announces for every file."""

    etag = ""
    commit = "a" * 40


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        name = self.path.rpartition("/")[2]
        if name not in ("config.json", "model.safetensors"):
            self.send_error(404)
            return
        data = CONFIG if name == "config.json" else b"anything"
        self.send_response(200)
        self.send_header("X-Repo-Commit", Hub.commit)
        self.send_header("ETag", f'"{Hub.etag or hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("what", ["new", "victim", "link", "up", "commit"])
def test_an_etag_that_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    victim = tmp_path / "victim" / ("b" * 40)
    victim.parent.mkdir()
    victim.write_text("precious")
    tags = {"new": str(tmp_path / "new"), "victim": str(victim), "link": "/etc/passwd", "up": "../../../../up"}
    monkeypatch.setattr(Hub, "etag", tags.get(what, ""))
    monkeypatch.setattr(Hub, "commit", "../" * 6 + "x" if what == "commit" else "a" * 40)
    before = {path for path in tmp_path.rglob("*") if "hub" not in path.parts}
    assert main(["pull", "hf-hub:evil/model"]) == 3
    assert "which is no digest. Nothing was written" in capsys.readouterr().err
    assert victim.read_text() == "precious"
    assert {path for path in tmp_path.rglob("*") if "hub" not in path.parts} == before
    assert not [path for path in (tmp_path / "hub").rglob("*") if path.is_symlink()]
