"""The server's life: signals, and an end that loses no request.

uvicorn closes idle connections at once at a signal, with the requests that are under way on them, and resets those that
the system has connected but uvicorn has not seen.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from uvicorn import Server

from dla.serving.http import LimitedProtocol, Settings


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
