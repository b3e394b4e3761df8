"""A small model hub on loopback: what huggingface_hub asks of the real one, with faults to switch on.

Small files are answered directly, weights by a redirect to another host name, as the real hub does it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """Files by repository, commit and name, and the faults that are switched on."""

    endpoint: str = ""
    repos: dict[str, dict[str, Mapping[str, bytes]]] = field(default_factory=dict)
    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, authorization
    agents: set[str] = field(default_factory=set)

    refuse: int = 0  # this status for every file
    error_code: str = ""  # the hub's X-Error-Code beside it
    busy: int = 0  # so many requests for weights are answered 429
    cuts: int = 0  # so many answers with weights break off in the middle
    altered: bool = False  # weights come with one bit changed
    short: bool = False  # weights come truncated, and the transfer announces the length that comes
    meeting: threading.Barrier | None = None  # questions for a config wait for each other

    def add(self, repo: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Another commit of a repository; the branch moves to it."""
        digest = hashlib.sha1(repr((repo, sorted(files.items()), len(self.repos.get(repo, ())))).encode())
        commit = digest.hexdigest()
        self.repos.setdefault(repo, {})[commit] = dict(files)
        self.branches[repo, branch] = commit
        return commit

    def downloads(self) -> int:
        """How often weights were asked for."""
        return sum(method == "GET" and path.startswith("/cdn/") for method, path, _ in self.requests)


def etag(name: str, data: bytes) -> str:
    """What the hub calls a file: the SHA-256 of a large one, git's name of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        hub = self.hub
        hub.requests.append((self.command, self.path, self.headers.get("authorization", "")))
        hub.agents.add(self.headers.get("user-agent", ""))
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[0] == "cdn":
            self.send_weights("/".join(parts[1:3]), parts[3], parts[4], body)
        elif hub.refuse:
            self.fail(hub.refuse, hub.error_code)
        elif len(parts) == 5 and parts[2] == "resolve":
            if hub.meeting and parts[4] == "config.json" and not body:
                hub.meeting.wait(120)
            self.resolve("/".join(parts[:2]), parts[3], parts[4], body)
        else:
            self.fail(404, "")

    def resolve(self, repo: str, revision: str, filename: str, body: bool) -> None:
        if repo not in self.hub.repos:
            return self.fail(401, "RepoNotFound")
        commit = self.hub.branches.get((repo, revision), revision)
        if commit not in self.hub.repos[repo]:
            return self.fail(404, "RevisionNotFound")
        if filename not in self.hub.repos[repo][commit]:
            return self.fail(404, "EntryNotFound", commit)
        data = self.hub.repos[repo][commit][filename]
        tag = f'"{etag(filename, data)}"'
        if not filename.endswith(LARGE):
            return self.send(200, data, {"X-Repo-Commit": commit, "ETag": tag}, body)
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Etag": tag,
            "X-Linked-Size": str(len(data)),
            "Location": f"{elsewhere}/cdn/{repo}/{commit}/{filename}",
        }
        return self.send(302, b"", headers, body)

    def send_weights(self, repo: str, commit: str, filename: str, body: bool) -> None:
        if self.hub.busy > 0:
            self.hub.busy -= 1
            return self.fail(429, "")
        data = self.hub.repos[repo][commit][filename]
        if self.hub.altered:
            data = data[:-1] + bytes([data[-1] ^ 1])
        if self.hub.short:
            data = data[: len(data) // 2]
        start = int(self.headers.get("range", "bytes=0-").split("=")[1].split("-")[0])
        headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        if self.hub.cuts > 0:
            self.hub.cuts -= 1
            # Half of it once; a retry then gets nothing, so that the client's patience has an end.
            half = data[start : len(data) // 2]
            self.send(206 if start else 200, half, headers | {"Content-Length": str(len(data) - start)}, body)
            self.close_connection = True
        else:
            self.send(206 if start else 200, data[start:], headers, body)
        return None

    def fail(self, status: int, code: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.send(status, b"", headers | ({"X-Repo-Commit": commit} if commit else {}), body=False)

    def send(self, status: int, data: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub, empty at first."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
