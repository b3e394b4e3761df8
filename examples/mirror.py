"""Serve a cache of the Hugging Face hub to machines that cannot reach it; docs/ship.md says how.

python examples/mirror.py CACHE [HOST:PORT]        default: 127.0.0.1:8000
"""

import re
import shutil
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REQUEST = re.compile(r"/(\w[\w.-]*)/(\w[\w.-]*)/resolve/(\w[\w.-]*)/(\w[\w.-]*)")


class Mirror(BaseHTTPRequestHandler):
    """Answers /OWNER/NAME/resolve/REVISION/FILE from `cache`; a revision is a branch or a commit."""

    cache: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        if not (asked := REQUEST.fullmatch(self.path)):
            return self.refuse("RepoNotFound")
        owner, name, revision, filename = asked.groups()
        repo = self.cache / f"models--{owner}--{name}"
        branch = repo / "refs" / revision
        commit = branch.read_text().strip() if branch.is_file() else revision
        if not (folder := repo / "snapshots" / commit).is_dir():
            return self.refuse("RevisionNotFound" if repo.is_dir() else "RepoNotFound")
        if not (path := folder / filename).is_file():
            return self.refuse("EntryNotFound")
        return self.send(path, commit, body)

    def send(self, path: Path, commit: str, body: bool) -> None:
        size = path.stat().st_size
        resumed = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = min(int(resumed[1]), size) if resumed else 0
        self.send_response(206 if resumed else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{path.resolve().name}"')  # in a cache, its digest is the name of the file
        self.send_header("Content-Length", str(size - start))
        if resumed:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.end_headers()
        if body:
            with path.open("rb") as file:
                file.seek(start)
                shutil.copyfileobj(file, self.wfile)

    def refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def serve(cache: Path, host: str, port: int) -> ThreadingHTTPServer:
    return ThreadingHTTPServer((host, port), type("Handler", (Mirror,), {"cache": cache}))


if __name__ == "__main__":
    if len(sys.argv) < 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    host, _, port = (sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:8000").rpartition(":")
    with serve(Path(sys.argv[1]), host, int(port)) as server:
        server.serve_forever()
