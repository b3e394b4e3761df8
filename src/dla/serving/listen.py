"""Listen, and run a service until a signal ends it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

from dla.errors import UsageError
from dla.options import ServeOptions
from dla.serving.app import App
from dla.serving.drain import DrainingServer
from dla.serving.http import Settings
from dla.serving.service import Service


def run_service(service: Service, listener: socket.socket, on_ready: Callable[[], None], *, may_reload: bool) -> None:
    """Serve until a signal ends the service, which is then raised again, or until its model does not load.

    Args:
        service: what is served.
        listener: an open socket, from `open_socket`.
        on_ready: called once the model is loaded.
        may_reload: SIGHUP loads the model anew; else it ends the service.

    Raises:
        DlaError: the model cannot be loaded.
    """
    settings = Settings(App(service), service.options, lambda refusal: service.counters.reject(refusal.code))
    server = DrainingServer(
        settings, lambda: service.start(on_ready), service.begin_drain, service.reload if may_reload else None
    )
    service.server = server
    try:
        server.run([listener])
    finally:
        service.queue.close()
        if service.options.uds is not None:
            with suppress(OSError):
                os.unlink(service.options.uds)
    if service.problem is not None:
        raise service.problem


def open_socket(options: ServeOptions) -> socket.socket:
    """Return the socket on which the service listens.

    Raises:
        UsageError: the address is in use or not of this machine.
    """
    if options.uds is not None:
        return _unix_socket(options.uds)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {options.host}: {error.strerror}. Give an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        where = f"port {options.port} of {options.host}"
        hint = f"Give another --port, or see who has it: ss -ltnp 'sport = :{options.port}'"
        raise UsageError(f"{where}: {error.strerror}. {hint}") from None
    return listener


def _unix_socket(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode) and listener.connect_ex(path) != 0:
            os.unlink(path)  # of a service that was killed
    listener.close()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(path, 0o660)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(f"--uds {path}: {error.strerror}. Give another path, or remove that file") from None
    return listener


def address_of(listener: socket.socket, options: ServeOptions) -> str:
    """Return the address of the service, as a browser takes it."""
    if options.uds is not None:
        return f"unix:{options.uds}"
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.getsockname()[1]}"
