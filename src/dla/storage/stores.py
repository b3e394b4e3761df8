"""Files in object stores: `s3://` and `gs://` by pyarrow, `fsspec:PROTOCOL://` by fsspec.

Credentials come from the environment or the platform, never from an address. A store that does not answer is asked
again for `PATIENCE_S` seconds.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

from dla.errors import UnavailableError, UsageError, import_optional, pip_line

T = TypeVar("T")

PATIENCE_S = 60.0
FSSPEC_PROTOCOLS = (
    "abfs",
    "az",
    "file",
    "gcs",
    "hdfs",
    "hf",
    "http",
    "https",
    "memory",
    "oss",
    "s3",
    "sftp",
    "webhdfs",
)
_REMOTE = re.compile(r"(?:s3|gs)://|fsspec:")
_KEY = re.compile(r"token|passw|pwd|secret|key|sig(?:nature)?\b|credential|auth", re.IGNORECASE)
_REFUSED = re.compile(r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|CREDENTIAL|TOKEN|HTTP status 40[13]|\b40[13] ")
_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class StoreError(UnavailableError):
    """A store refuses access, or does not answer."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a store. `version` differs if the file is replaced: its ETag, or the time of its last change."""

    uri: str
    size: int | None
    version: str | None


def is_remote(name: str) -> bool:
    """Return whether a name is an address in a store."""
    return _REMOTE.match(name) is not None


def check_no_secrets(uri: str) -> None:
    """Raise a UsageError if an address has credentials or a signature, which would be written into files."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest:
        return
    host, _, query = rest.partition("/")[0], *rest.partition("?")[1:]
    found = "a user name or password" if "@" in host else None
    if query and any(_KEY.search(part.partition("=")[0]) for part in query.split("&")):
        found = "a key or signature"
    if found:
        raise UsageError(
            f"{scheme}://{rest.split('?')[0].rpartition('@')[2][:80]}: the address has {found}, which would be written "
            "into files. Leave it out; credentials come from the environment or the platform"
        )


@dataclass(frozen=True)
class Store:
    """A file system of pyarrow. `prefix` is the start of addresses in it, before the paths that it takes."""

    files: Any
    prefix: str

    def read_versioned(self, uri: str, most: int, offset: int = 0) -> tuple[bytes, str | None]:
        """Return the bytes of a file from `offset` on, at most `most` + 1, and its version.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: access is refused, or the store does not answer.
        """

        def read() -> tuple[bytes, str | None]:
            with self.files.open_input_file(self._path(uri)) as file:
                count = min(most + 1, max(0, file.size() - offset))
                return file.read_at(count, offset), _version_of(file.metadata())

        return self._patiently(uri, read)

    def read(self, uri: str, most: int = 2**31) -> bytes:
        """Return the bytes of a file; raises as `read_versioned`."""
        return self.read_versioned(uri, most)[0]

    def read_end(self, uri: str, most: int) -> bytes:
        """Return the last bytes of a file, at most `most`; raises as `read_versioned`."""

        def read() -> bytes:
            with self.files.open_input_file(self._path(uri)) as file:
                start = max(0, file.size() - most)
                return bytes(file.read_at(file.size() - start, start))

        return self._patiently(uri, read)

    def open(self, uri: str) -> Any:
        """Return a file open for reading at any place."""
        return self._patiently(uri, lambda: self.files.open_input_file(self._path(uri)))

    def info(self, uri: str) -> StoredFile | None:
        """Return a file's size and version; None if there is none."""
        info = self._patiently(uri, lambda: self.files.get_file_info(self._path(uri)))
        return self._stored(info) if info.is_file else None

    def walk(self, uri: str) -> Iterator[StoredFile]:
        """Yield the files below an address, each folder sorted by name; none if there is nothing."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._path(uri).rstrip("/"), allow_not_found=True)
        for info in sorted(
            self._patiently(uri, lambda: self.files.get_file_info(selector)), key=lambda info: info.path
        ):
            if info.type == FileType.Directory:
                yield from self.walk(self.prefix + info.path)
            elif info.is_file and not info.path.endswith("/"):  # S3's empty objects that stand for folders
                yield self._stored(info)

    def write(self, uri: str, data: bytes) -> None:
        """Write a file, which appears when it is complete.

        Raises:
            StoreError: access is refused, or the store does not answer.
        """

        def put() -> None:
            path = self._path(uri)
            if "/" in path and self.files.type_name.startswith(("py::fsspec", "local")):
                self.files.create_dir(path.rpartition("/")[0])
            with self.files.open_output_stream(path) as file:
                file.write(data)

        self._patiently(uri, put)

    def remove(self, uri: str) -> None:
        """Remove a file, if it is there."""
        if self.info(uri) is not None:
            self._patiently(uri, lambda: self.files.delete_file(self._path(uri)))

    def _path(self, uri: str) -> str:
        return uri.removeprefix(self.prefix)

    def _stored(self, info: Any) -> StoredFile:
        version = None if info.mtime is None else _time_text(info.mtime)
        return StoredFile(self.prefix + info.path, info.size, version)

    def _patiently(self, uri: str, call: Callable[[], T]) -> T:
        """Call; again and again while the store does not answer."""
        end, pause = time.monotonic() + PATIENCE_S, 0.2
        while True:
            try:
                return call()
            except _NOT_THERE:
                raise
            except PermissionError as error:
                raise StoreError(f"{uri}: access is refused. Credentials come from the environment") from error
            except OSError as error:
                if _REFUSED.search(str(error)):
                    raise StoreError(f"{uri}: access is refused. Credentials come from the environment") from error
                if "NO_SUCH_BUCKET" in str(error):
                    raise StoreError(f"{uri}: there is no such bucket") from error
                if time.monotonic() + pause > end:
                    raise StoreError(
                        f"{uri}: the store did not answer for {PATIENCE_S:.0f} s ({_reason(error)}). Try again later"
                    ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 5.0)


def _reason(error: OSError) -> str:
    return re.sub(r"\s+", " ", str(error)).rpartition("AWS Error ")[2][:120]


def _time_text(time_: datetime) -> str:
    return time_.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _version_of(metadata: dict[bytes, bytes] | None) -> str | None:
    when = {k.decode() if isinstance(k, bytes) else k: v for k, v in (metadata or {}).items()}.get("Last-Modified")
    return None if when is None else when.decode()


def open_store(uri: str) -> Store:
    """Return the store that an address is in.

    Raises:
        UsageError: the address has secrets, or is of an unknown kind.
        UnavailableError: a package is missing.
    """
    check_no_secrets(uri)
    if not is_remote(uri):
        raise UsageError(f"{uri} is no address in a store. Allowed: s3://, gs:// and fsspec:PROTOCOL://")
    if uri.startswith("fsspec:"):
        protocol, separator, _ = uri.removeprefix("fsspec:").partition("://")
        if "::" in uri or not separator or protocol not in FSSPEC_PROTOCOLS:
            raise UsageError(f"{uri}: fsspec takes one protocol. Allowed: {', '.join(FSSPEC_PROTOCOLS)}")
        return _fsspec_store(protocol)
    scheme = uri.partition("://")[0]
    return _arrow_store(scheme)


@lru_cache(maxsize=8)
def _arrow_store(scheme: str) -> Store:
    fs = import_optional("pyarrow.fs", f"{scheme}:// needs pyarrow: {pip_line('bulk')}")
    if scheme == "gs":
        return Store(fs.GcsFileSystem(retry_time_limit=_seconds(PATIENCE_S)), "gs://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    files = fs.S3FileSystem(
        endpoint_override=endpoint,
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )
    return Store(files, "s3://")


def _seconds(count: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=count)


@lru_cache(maxsize=8)
def _fsspec_store(protocol: str) -> Store:
    fsspec = import_optional("fsspec", f"fsspec: needs fsspec: {pip_line('bulk')}")
    fs = import_optional("pyarrow.fs", f"fsspec: needs pyarrow: {pip_line('bulk')}")
    try:
        files = fsspec.filesystem(protocol)
    except ImportError as error:
        raise UnavailableError(f"fsspec:{protocol}:// needs a further package: {error}") from error
    prefix = "fsspec:" if protocol in ("http", "https") else f"fsspec:{protocol}://"  # whose paths are whole addresses
    return Store(fs.PyFileSystem(fs.FSSpecHandler(files)), prefix)
