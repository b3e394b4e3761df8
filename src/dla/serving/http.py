"""HTTP over uvicorn, with what it lacks: limits on time and headers, answers that reach the client, and a drain.

uvicorn (`HttpToolsProtocol`) waits without limit for the rest of a request and takes headers of any length. It resets a
connection that it closes while a body is still coming, so that the client may lose the answer, and leaves out the body
of a request that would rather speak HTTP/2.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import httptools
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dla.options import ServeOptions
from dla.serving.answers import RequestError, error_body

MAX_HEAD = 64 * 1024  # bytes of a request's first line and headers
MOST_DROPPED = 1024 * 1024  # bytes of a body that are read and dropped after the answer, to keep the connection
LINGER_S = 2.0  # that a closed connection is still read from, so that the client sees the answer
LAST_CHANCE_S = 0.5  # for a request that was under way as the service ended
_UPGRADE = (b"connection", b"upgrade", b"http2-settings")
GONE = "dla.gone"  # the key of a scope's function that is called if the client goes away


class Settings(Config):
    """uvicorn's settings, with those of this protocol. `count_refusal` is told of answers without the application."""

    def __init__(self, app: Any, options: ServeOptions, count_refusal: Callable[[RequestError], None]) -> None:
        super().__init__(
            app,
            http=cast(Any, LimitedProtocol),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=options.proxy_headers,
            forwarded_allow_ips="127.0.0.1" if options.uds is None else "*",  # who reaches the socket is this machine's
            root_path=options.root_path,
            timeout_keep_alive=cast(int, options.keep_alive),
            timeout_graceful_shutdown=cast(int, max(0.0, options.grace - options.drain)),
        )
        self.options, self.count_refusal = options, count_refusal


class LimitedProtocol(HttpToolsProtocol):
    """One connection.

    A request that has not come within `receive_timeout` is answered with 408, one with too long a head with 431, and
    one on too many connections with 503. If a request is answered before its body has come, the rest is dropped: up to
    `MOST_DROPPED` bytes while the connection stays open; else it is closed for writing, and read for `LINGER_S`.
    """

    config: Settings

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.options = self.config.options
        self.receiving: asyncio.TimerHandle | None = None  # runs out if a request does not come
        self.lingering: asyncio.TimerHandle | None = None  # what still comes is dropped
        self.stalled: asyncio.TimerHandle | None = None  # runs out if the client does not read
        self.head_bytes = self.other_bytes = self.dropped = 0
        self.has_progress = False
        self.ends = False  # the next answer is the last one
        self.problem: RequestError | None = None
        self.answered: RequestResponseCycle | None = None  # the request that is being answered, or was the last one
        self.is_deaf = False  # what comes is dropped, and the request in work is the last one

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; refuse a connection too many."""
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > self.options.max_connections:
            self._refuse(
                RequestError(503, "busy", f"{self.options.max_connections} connections are open", retry_after=1)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and tell the request in work."""
        for timer in (self.receiving, self.lingering, self.stalled):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        cycle = self.answered
        is_asked = cycle is not None and not cycle.response_complete and not cycle.disconnected
        super().connection_lost(exc)
        if cycle is not None and is_asked:
            cycle.disconnected = True
            cycle.message_event.set()
            if GONE in cycle.scope:
                cast(Any, cycle.scope)[GONE]()

    def _expect_request(self) -> None:
        if self.receiving is None:
            self.receiving = self.loop.call_later(self.options.receive_timeout, self._is_too_slow)

    def _is_too_slow(self) -> None:
        self.receiving = None
        if self.flow.read_paused:  # it waits behind a request in work
            self._expect_request()
            return
        seconds = f"{self.options.receive_timeout:g}"
        self._refuse(RequestError(408, "slow_request", f"the request did not come within {seconds} s"))

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the limits."""
        if self.lingering is not None or self.is_deaf:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._expect_request()
        self.has_progress = False
        self._unset_keepalive_if_required()
        self._parse(data)
        if not self.has_progress:  # half a header, or what stands between the parts of a body
            self.other_bytes += len(data)
            if self.other_bytes > MAX_HEAD:
                self._refuse(_LONG_HEAD)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parse_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _parse_without_upgrade(self, rest: bytes) -> None:
        """Parse a request again without its wish for another protocol, for which the parser would leave out its body.

        Java's client has that wish in each request, and `curl --http2`.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(RequestError(405, "method", "this service is no proxy", allow="GET, POST"))
            return
        version = self.parser.get_http_version().encode()
        kept = [(name, value) for name, value in self.headers if name not in _UPGRADE or value.lower() == b"close"]
        lines = [b"%b %b HTTP/%b" % (method, self.url, version), *(b"%b: %b" % header for header in kept)]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._parse(b"\r\n".join([*lines, b"", b""]) + rest)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self.head_bytes = self.other_bytes = self.dropped = 0
        self._expect_request()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the address."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header."""
        self._count_head(len(name) + len(value))
        super().on_header(name, value)

    def _count_head(self, count: int) -> None:
        self.head_bytes += count
        if self.head_bytes > MAX_HEAD:
            self.problem = _LONG_HEAD
            raise ValueError(_LONG_HEAD.message)  # the parser stops, and `send_400_response` follows

    def on_headers_complete(self) -> None:
        """Start the answer."""
        self.has_progress = True
        if self.parser.should_upgrade():
            return  # it is parsed again
        super().on_headers_complete()
        if self.ends:
            self.cycle.keep_alive = False
        self.cycle.transport = cast(asyncio.Transport, _AnswerTransport(self, self.cycle))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        """Take a part of the body, or drop it if the request is answered."""
        self.has_progress, self.other_bytes = True, 0
        if self.cycle.response_complete:
            self.dropped += len(body)
            if self.dropped > MOST_DROPPED:
                self._linger()
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request has come."""
        self.has_progress = True
        if self.parser.should_upgrade():
            return
        if self.receiving is not None:
            self.receiving.cancel()
            self.receiving = None
        self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that the request is answered."""
        assert self.answered is not None
        cast(_AnswerTransport, self.answered.transport).flush()
        if self.lingering is not None:
            return  # requests that came behind it are not answered
        super().on_response_complete()
        if self.receiving is not None:  # the rest of the body or the next request is coming: that limit holds
            self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(self.problem or RequestError(400, "bad_request", "this is not a valid HTTP request"))

    def _refuse(self, refusal: RequestError) -> None:
        """Answer without the application, unless the request has an answer, and close.

        If this is about a request behind another one that came whole, that one is answered first, and is the last.
        """
        if self.lingering is not None or self.transport.is_closing():
            return
        cycle = self.answered
        is_in_work = cycle is not None and not cycle.response_complete
        if cycle is not None and is_in_work and not cycle.more_body:
            cycle.keep_alive, self.is_deaf = False, True
            self.pipeline.clear()
            return
        if cycle is None or not (cycle.more_body if cycle.response_complete else cycle.response_started):
            self.config.count_refusal(refusal)
            self.transport.write(_as_bytes(refusal))
        if cycle is not None and is_in_work:
            cycle.disconnected = True  # what its application sends goes nowhere
            cycle.message_event.set()
        self._linger()

    def close_after_answer(self, cycle: RequestResponseCycle) -> None:
        """Close the connection, so that the client sees the answer even while it still sends."""
        if cycle.more_body or self.is_deaf:
            self._linger()
        else:
            self.transport.close()
            self._watch_reader()

    def _linger(self) -> None:
        if self.lingering is None and not self.transport.is_closing():
            self.lingering = self.loop.call_later(LINGER_S, self.transport.abort)
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
            with suppress(OSError):  # the client is gone
                self.transport.write_eof()

    def pause_writing(self) -> None:
        """Wait for the client to read its answer, as long as it reads."""
        super().pause_writing()
        self._watch_reader()

    def _watch_reader(self) -> None:
        if self.stalled is None and (size := self.transport.get_write_buffer_size()):
            self.stalled = self.loop.call_later(self.options.receive_timeout, self._check_reader, size)

    def _check_reader(self, size: int) -> None:
        self.stalled = None
        if 0 < size <= self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._watch_reader()

    def shutdown(self) -> None:
        """End after the request in work, or after one that may be under way."""
        self.ends = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(LAST_CHANCE_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


_LONG_HEAD = RequestError(431, "long_header", f"the headers have more than {MAX_HEAD // 1024} KiB")


class _AnswerTransport:
    """What an answer is written to: head and body at once. Closing it lets the client read the answer first."""

    def __init__(self, protocol: LimitedProtocol, cycle: RequestResponseCycle) -> None:
        self.protocol, self.cycle = protocol, cycle
        self.head: bytes | None = None

    def is_closing(self) -> bool:
        return self.protocol.lingering is not None or self.protocol.transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.cycle.response_started:  # 100 Continue
            self.protocol.transport.write(data)
        elif self.head is None:
            self.head = data
        else:
            self.protocol.transport.write(self.head + data if self.head else data)
            self.head = b""

    def flush(self) -> None:
        if self.head:
            self.protocol.transport.write(self.head)
            self.head = b""

    def close(self) -> None:
        self.flush()
        self.protocol.close_after_answer(self.cycle)


def _as_bytes(refusal: RequestError) -> bytes:
    body = error_body(refusal)
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    headers |= {"x-content-type-options": "nosniff", "connection": "close"}
    lines = [f"HTTP/1.1 {refusal.status} {refusal.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
