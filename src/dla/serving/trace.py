"""What is known about one request, and reading its body."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request

from dla.errors import UnknownNameError
from dla.serving.answers import RequestError
from dla.serving.prometheus import STAGES
from dla.serving.queue import Job, PhotoQueue

TRACE = "dla.trace"  # its key in a scope
UNKNOWN_LENGTH = 2**63  # of a body that comes in chunks


@dataclass(slots=True)
class Trace:
    """One request: who asked, what came of its body, its photos, and the status of its answer.

    `declared` is the length of the body that its header says, 0 if it has none; of a body that was read, its own.
    """

    request_id: str
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    client: str
    declared: int
    route: str = "other"
    status: int = 0
    body_bytes: int = 0
    is_gone: bool = False
    jobs: Sequence[Job] = ()
    began: float = field(default_factory=time.perf_counter)

    def header(self, name: bytes) -> str:
        """Return a header, "" if it is missing."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def media_type(self) -> str:
        """What the body is, without parameters."""
        return self.header(b"content-type").partition(";")[0].strip().lower()

    def accepts(self, media_type: str) -> bool:
        """Return whether the client names this kind of answer."""
        return media_type in self.header(b"accept").lower()

    def seconds(self) -> dict[str, float]:
        """Return the longest time of a photo in each stage."""
        parts = [job.seconds() for job in self.jobs if job.times]
        return {stage: max(part[stage] for part in parts) for stage in STAGES[:-1]} if parts else {}


async def read_body(request: Request, queue: PhotoQueue, most: int) -> bytes:
    """Return the body of a request.

    Raises:
        RequestError: it has more than `most` bytes or is compressed, or there is no place; mostly before it is read.
    """
    trace: Trace = request.scope[TRACE]
    encoding = trace.header(b"content-encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(415, "media_type", f"the body is compressed ({encoding[:20]}). Send it as it is")
    length = trace.header(b"content-length")
    if length and int(length) > most:
        raise _too_large(most)
    queue.check(int(length or 0))
    parts = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        trace.body_bytes += len(part)
        queue.body_bytes += len(part)
        if trace.body_bytes > most:
            raise _too_large(most)
        parts.append(part)
        if not message.get("more_body", False):
            break
        queue.check(0)
    trace.declared = trace.body_bytes
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(most: int) -> RequestError:
    return RequestError(413, "body_too_large", f"the body has more than {most // 2**20} MiB (--max-body)")


def read_query(request: Request, *known: str) -> dict[str, Any]:
    """Return the options in the address, each at most once.

    Raises:
        UnknownNameError: one of them is not known.
        RequestError: one is there twice.
    """
    raw = request.scope["query_string"]
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True, max_num_fields=32)
    except ValueError:
        raise RequestError(400, "bad_request", "the address has more than 32 options") from None
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name not in known:
            raise UnknownNameError("option", name[:40], known, see=", ".join(known) or "none")
        if name in options:
            raise RequestError(400, "bad_request", f"{name} is there twice")
        options[name] = value
    return options
