"""Who may ask: names in `Host`, origins of pages, and the token."""

from __future__ import annotations

import hmac
import ipaddress
import os
import stat
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from dla.errors import UsageError
from dla.options import ServeOptions
from dla.serving.answers import RequestError

HEALTH = ("/v2/health/live", "/v2/health/ready")  # answered whatever the Host, and without the token
OPEN = (*HEALTH, "/")  # answered without the token: the page asks for it


class Guard:
    """Checks requests before anything of them is read.

    A page of another site can send requests to a service on its visitor's machine, with the site's name in `Host` if
    the site has pointed its name there; an IP address cannot be pointed elsewhere.

    Raises:
        UsageError: the options do not fit together, or the token cannot be used.
    """

    def __init__(self, options: ServeOptions) -> None:
        self.names = frozenset(name.lower().rstrip(".") for name in ("localhost", options.host, *options.allow_host))
        self.origins = frozenset(origin.rstrip("/").lower() for origin in options.cors)
        self.token_file = options.token_file
        self.token = None if options.token_file is None else read_token(options.token_file)
        if "*" in self.origins and self.token is not None:
            raise UsageError(
                "--cors '*' lets every page ask, and --token-file only who has the token. Name the origins"
            )

    def read_token_again(self) -> None:
        """Read the token's file anew; the old token stays if that fails.

        Raises:
            UsageError: the token cannot be used.
        """
        if self.token_file is not None:
            self.token = read_token(self.token_file)

    def check_host(self, path: str, hosts: Sequence[bytes]) -> None:
        """Raise a RequestError unless the service has the name in the only Host header."""
        if path in HEALTH:
            return
        if len(hosts) != 1 or not hosts[0]:
            raise RequestError(400, "bad_request", "the request has no Host, or several")
        name = name_in(hosts[0].decode("latin-1"))
        if name not in self.names and not _is_address(name):
            raise RequestError(
                403, "unknown_host", f'this service is not called "{name}". Start it with --allow-host {name}'
            )

    def check_sender(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raise a RequestError if a page of another site asks, or the token is missing.

        `headers` are by their names in lower case.
        """
        if method not in ("GET", "HEAD", "OPTIONS"):
            self._check_origin(headers.get(b"host", b"").decode("latin-1"), headers)
        if self.token is not None and path not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self.token):
                message = "this service wants a token: -H 'Authorization: Bearer TOKEN'"
                raise RequestError(401, "no_token", message, www_authenticate="Bearer")

    def _check_origin(self, host: str, headers: Mapping[bytes, bytes]) -> None:
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and (origin in self.origins or "*" in self.origins):
            return
        foreign = origin and urlsplit(origin).netloc != host.lower()
        if foreign or headers.get(b"sec-fetch-site") == b"cross-site":
            asked = origin or "another site"
            raise RequestError(
                403, "origin", f"a page of {asked} may not ask this service. Start it with --cors {asked}"
            )


def name_in(host: str) -> str:
    """Return the name or address in a Host header, in lower case, without the port."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def read_token(path: str) -> bytes:
    """Return the token in a file that other users cannot read.

    Raises:
        UsageError: there is no such file, others can read it, or it has no token.
    """
    try:
        with open(path, "rb") as file:
            mode, token = os.fstat(file.fileno()).st_mode, file.read(4097).strip()
    except OSError as error:
        raise UsageError(f"--token-file {path}: {error.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(f"--token-file {path}: other users can read it. Try: chmod 600 {path}")
    if not 16 <= len(token) <= 4096 or not token.isascii() or len(token.split()) != 1:
        raise UsageError(f"--token-file {path}: a token is one word of 16 to 4,096 letters. Try: openssl rand -hex 32")
    return token


def is_open_address(host: str) -> bool:
    """Return whether other machines can reach a service at this address."""
    return host != "localhost" and not (_is_address(host) and ipaddress.ip_address(host).is_loopback)
