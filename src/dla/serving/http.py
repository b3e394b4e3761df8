"""HTTP over uvicorn, with what it lacks: limits on time and headers, answers that reach the client, and a drain.

uvicorn (`HttpToolsProtocol`) waits without limit for the rest of a request, takes headers of any length, and resets a
connection that it closes while a body is still coming, so that the client may lose the answer.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, cast

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dla.options import ServeOptions
from dla.serving.answers import RequestError, error_body

MAX_HEAD = 64 * 1024  # bytes of a request's first line and headers
MOST_DROPPED = 1024 * 1024  # bytes of a body that are read and dropped after the answer, to keep the connection
LINGER_S = 2.0  # that a closed connection is still read from, so that the client sees the answer
LAST_CHANCE_S = 0.5  # for a request that was under way as the service ended
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
        gone = self.scope.get(GONE) if self.cycle is not None and not self.cycle.response_complete else None
        super().connection_lost(exc)
        if gone is not None:
            cast(Any, gone)()

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
        if self.lingering is not None:
            return
        if self.cycle is None or self.cycle.response_complete:
            self._expect_request()
        self.has_progress = False
        super().data_received(data)
        if not self.has_progress:  # half a header, or what stands between the parts of a body
            self.other_bytes += len(data)
            if self.other_bytes > MAX_HEAD:
                self._refuse(_LONG_HEAD)

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
        super().on_headers_complete()
        if self.ends:
            self.cycle.keep_alive = False
        self.cycle.transport = cast(asyncio.Transport, _AnswerTransport(self, self.cycle))

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
        if self.receiving is not None:
            self.receiving.cancel()
            self.receiving = None
        self.cycle.more_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Note that the request is answered."""
        cast(_AnswerTransport, self.cycle.transport).flush()
        if self.lingering is not None:
            return  # requests that came behind it are not answered
        super().on_response_complete()
        if self.receiving is not None:  # the rest of the body or the next request is coming: that limit holds
            self._unset_keepalive_if_required()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(self.problem or RequestError(400, "bad_request", "this is not a valid HTTP request"))

    def _refuse(self, refusal: RequestError) -> None:
        """Answer without the application, unless the request has an answer, and close."""
        if self.lingering is not None or self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is None or not (cycle.more_body if cycle.response_complete else cycle.response_started):
            self.config.count_refusal(refusal)
            self.transport.write(_as_bytes(refusal))
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # what its application sends goes nowhere
            cycle.message_event.set()
        self._linger()

    def close_after_answer(self, cycle: RequestResponseCycle) -> None:
        """Close the connection, so that the client sees the answer even while it still sends."""
        if cycle.more_body:
            self._linger()
        else:
            self.transport.close()
            self._watch_reader()

    def _linger(self) -> None:
        if self.lingering is None and not self.transport.is_closing():
            self.lingering = self.loop.call_later(LINGER_S, self.transport.abort)
            self._unset_keepalive_if_required()
            self.flow.resume_reading()
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


def _last_clients(listener: socket.socket) -> list[socket.socket]:
    """Accept what waits on a socket that does not block, and take no more: closing it would reset those that wait."""
    clients = []
    with suppress(OSError):  # none is left, mostly
        while True:
            clients.append(listener.accept()[0])
    with suppress(OSError):  # not every system ends a listening socket so
        listener.shutdown(socket.SHUT_RD)
    for client in clients:
        client.setblocking(False)
    return clients


class DrainingServer(Server):
    """uvicorn's server, which after a signal goes on answering for `drain` seconds. A second signal ends it at once.

    Args:
        config: the settings.
        on_started: called once connections are taken.
        begin_drain: called at the first signal.
        reload: called at SIGHUP; None: SIGHUP ends the service, as SIGTERM does.
    """

    def __init__(
        self,
        config: Settings,
        on_started: Callable[[], None],
        begin_drain: Callable[[], None],
        reload: Callable[[], None] | None,
    ) -> None:
        super().__init__(config)
        self.options, self.on_started, self.begin_drain, self.reload = config.options, on_started, begin_drain, reload
        self.draining = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections."""
        await super().startup(sockets)
        self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, with the requests of clients that the system has connected already."""
        loop = asyncio.get_running_loop()
        late = [client for listener in sockets or () for client in _last_clients(listener)]
        tasks = [loop.create_task(loop.connect_accepted_socket(self._protocol, client)) for client in late]
        await super().shutdown(sockets)
        for task in tasks:
            task.cancel()

    def _protocol(self) -> LimitedProtocol:
        return LimitedProtocol(self.config, self.server_state, {})

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT, SIGTERM and SIGHUP; SIGINT and SIGTERM are raised again at the end."""
        with super().capture_signals():
            if threading.current_thread() is not threading.main_thread():
                yield  # only the main thread can handle signals
                return
            before = signal.signal(signal.SIGHUP, self._hang_up)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def _hang_up(self, sig: int, frame: FrameType | None) -> None:
        if self.reload is None:
            self.handle_exit(signal.SIGTERM, frame)
        else:
            asyncio.get_running_loop().call_soon_threadsafe(self.reload)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or at the second signal end at once."""
        loop = asyncio.get_running_loop()
        if self.draining:
            loop.call_soon_threadsafe(self._end_at_once)
            return
        self.draining = True
        self._captured_signals.append(sig)
        loop.call_soon_threadsafe(self._drain, loop)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        self.begin_drain()
        loop.call_later(self.options.drain, self.end)

    def end(self) -> None:
        """Take no more requests, and end after those in work."""
        self.should_exit = True

    def _end_at_once(self) -> None:
        self.should_exit = self.force_exit = True
        for connection in list(self.server_state.connections):
            connection.transport.abort()
