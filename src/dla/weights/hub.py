"""Fetch model files from the Hugging Face hub: from the cache, or on a miss from the network; all are verified.

huggingface_hub reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN when it is imported, which
happens at the first call of a function of this module.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dla.errors import DamagedError, UnavailableError, UsageError
from dla.storage.files import read_bytes
from dla.types import NO_PROGRESS, Progress
from dla.weights.model_folder import CONFIG, INDEX, WEIGHT_NAMES
from dla.weights.shards import has_all_shards, join_shards

WEIGHTS = WEIGHT_NAMES[:3]  # the first one that exists

# Sent instead of huggingface_hub's list of installed packages.
_HEADERS = {"user-agent": "dla"}
_PLAIN = re.compile(r"[\w-]{1,128}")  # a digest, or a tag such as a bucket's
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_CONNECTION = ("ConnectError", "ConnectTimeout", "ProxyError")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class HubFiles:
    """The verified config and weights of a repository at a commit; `sha256` is that of the weights."""

    repo: str
    commit: str
    config: bytes
    weights: bytes
    weights_path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    data: bytes
    sha256: str


class _AbsentError(Exception):
    """The repository has no such file."""


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    repair: bool = False,
    progress: Progress = NO_PROGRESS,
) -> HubFiles:
    """Return config and weights of a hub repository (owner/name), both of the same commit.

    With `repair`, damaged files in the cache are fetched again. `progress` receives the downloaded bytes.

    Raises:
        UnavailableError: if a file is neither in the cache nor on the hub, or the hub cannot be reached.
        DamagedError: if a file does not have the digest that the hub announced.
        UsageError: if `repo` is not a repository name.
    """
    wanted = _Wanted(repo, revision or "main", cache_folder(cache_dir), repair, _name(repo, revision), progress)
    with _explained(wanted):
        config, fresh = wanted.read(CONFIG)
        result = _with_weights(wanted, config)
        if result is None and not fresh:  # the cached commit has no weights; the branch may have moved since
            result = _with_weights(wanted, wanted.fetched(CONFIG))
    if result is None:
        raise UnavailableError(f"{wanted.place} has no weights: neither {', '.join(WEIGHTS[:-1])} nor {WEIGHTS[-1]}.")
    return result


def fetch_config(repo: str, revision: str | None = None, *, cache_dir: str | os.PathLike[str] | None = None) -> bytes:
    """Return only the config of a hub repository; raises as `fetch`."""
    wanted = _Wanted(repo, revision or "main", cache_folder(cache_dir), name=_name(repo, revision))
    with _explained(wanted):
        return wanted.read(CONFIG)[0].data


@contextmanager
def _explained(wanted: _Wanted) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except _AbsentError:
        raise UnavailableError(f"{wanted.place} has no {CONFIG}, so it is not a model that can be loaded.") from None
    except HFValidationError as error:
        raise UsageError(f'"{wanted.repo}" is not a repository name. Allowed: owner/name') from error


def locate(repo: str, revision: str | None = None, *, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """Return the path of the cached weights, next to their config; None if `fetch` would have to ask the hub.

    Nothing is read or verified. huggingface_hub is not used, because its import takes longer than all of `dla models`.
    """
    home = cache_folder(cache_dir) / f"models--{repo.replace('/', '--')}"
    wanted = revision or "main"
    try:
        ref = home / "refs" / wanted
        commit = ref.read_text().strip() if ref.is_file() else wanted
        snapshot = home / "snapshots" / commit
        for name in WEIGHTS if (snapshot / CONFIG).is_file() else ():
            if (snapshot / name).is_file():
                return snapshot / name if name != INDEX or has_all_shards(snapshot) else None
            if not (home / ".no_exist" / commit / name).exists():
                return None  # the hub may have it
    except OSError:
        pass  # an unreadable cache
    return None


def _with_weights(wanted: _Wanted, config: _File) -> HubFiles | None:
    """Return config and weights of the config's commit, because a branch may move between two requests."""
    pinned = replace(wanted, revision=config.path.parent.name)
    for name in WEIGHTS:
        try:
            weights, _ = pinned.read(name)
        except _AbsentError:
            continue
        if name == INDEX:
            weights = _joined(pinned, weights)
        return HubFiles(pinned.repo, pinned.revision, config.data, weights.data, weights.path, weights.sha256)
    return None


def _joined(wanted: _Wanted, index: _File) -> _File:
    """Return the weights in the files that an index names, each of them verified."""

    def read(name: str) -> bytes:
        try:
            return wanted.read(name)[0].data
        except _AbsentError:
            raise UnavailableError(f"{wanted.place} has no {name}, which its {INDEX} names.") from None

    data = join_shards(index.data, f"{INDEX} of {wanted.place}", read)
    return _File(index.path, data, hashlib.sha256(data).hexdigest())


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the hub's cache folder: `cache_dir`, or what huggingface_hub's environment variables set."""
    from huggingface_hub import constants

    return Path(os.path.expanduser(cache_dir or constants.HF_HUB_CACHE))


def _name(repo: str, revision: str | None) -> str:
    """Return the model name for `dla pull`."""
    return f"hf-hub:{repo}@{revision}" if revision else f"hf-hub:{repo}"


@dataclass(frozen=True, slots=True)
class _Wanted:
    repo: str
    revision: str
    cache: Path
    repair: bool = False
    name: str = ""
    progress: Progress = NO_PROGRESS

    @property
    def place(self) -> str:
        revision = "" if self.revision == "main" else f" at {self.revision[:12]}"
        return f"{self.repo}{revision} on the hub ({self.endpoint})"

    def read(self, filename: str) -> tuple[_File, bool]:
        """Return the file, and whether it was fetched."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.repo, filename, cache_dir=self.cache, revision=self.revision)
        if isinstance(cached, str):
            try:
                return self.verified(Path(cached)), False
            except DamagedError:
                if not self.repair:
                    raise
                return self.fetched(filename, again=True), True
        if cached is not None and _COMMIT.fullmatch(self.revision):
            raise _AbsentError  # a commit never changes; a branch may
        return self.fetched(filename), True

    def fetched(self, filename: str, *, again: bool = False) -> _File:
        """Fetch a file from the hub; delete it if it does not have the announced digest.

        `again` replaces the cached file, which is kept until the download is complete.
        """
        path = self.download(filename, again)
        try:
            return self.verified(path)
        except DamagedError as error:
            if (blob := _blob(path)).parent == path.parents[2] / "blobs":  # nothing outside the repository's own
                blob.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise DamagedError(
                f"{filename} of {self.place} does not have the announced digest and was deleted. Try again."
            ) from error

    def download(self, filename: str, again: bool) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        def explained(error: Exception) -> Exception:
            if isinstance(error, DamagedError):
                return error
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return _AbsentError()
            return UnavailableError(self.explain(error, filename, again))

        with _quietly(), _checked_metadata(self.place) as metadata:
            try:
                # hf_hub_download retries an unreachable or busy hub for half a minute; this request fails at once.
                metadata(self.url(filename), headers=_HEADERS)
            except Exception as error:
                refused = isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError)
                if refused or isinstance(error, DamagedError) or _unreachable(error):
                    raise explained(error) from error
            try:
                path = hf_hub_download(
                    self.repo,
                    filename,
                    revision=self.revision,
                    cache_dir=self.cache,
                    headers=_HEADERS,
                    tqdm_class=_bar(self.repo, self.progress),
                    force_download=again,
                )
            except Exception as error:  # from huggingface_hub, its HTTP client or the disk
                raise explained(error) from error
        return Path(path)

    def verified(self, path: Path) -> _File:
        """Return a cached file after comparing it with the digest in its name, which the hub announced."""
        data = read_bytes(path, math.inf)
        announced, sha256 = _blob(path).name, hashlib.sha256(data).hexdigest()
        if re.fullmatch(r"[0-9a-f]{64}", announced):
            actual = sha256
        elif re.fullmatch(r"[0-9a-f]{40}", announced):
            actual = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's blob id, of a small file
        else:
            actual = announced  # a cache without symlinks, or a hub that announces something else
        if actual != announced:
            raise DamagedError(
                f"{path.name} of {self.repo} is damaged in the cache ({len(data)} bytes, digest {actual[:8]}, "
                f"announced {announced[:8]}). Try: dla pull {self.name}, or delete {_blob(path)} to fetch it again."
            )
        return _File(path, data, sha256)

    def explain(self, error: Exception, filename: str, damaged: bool) -> str:
        """Return the message for a failed download; `damaged`: the cached file is damaged, not missing."""
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        by_hand = f"or put {CONFIG} and {WEIGHTS[0]} of {self.repo} into a folder and pass its path as the model."
        missing = f"{filename} of {self.repo} is {'damaged' if damaged else 'not'} in the cache ({self.cache})"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"{missing} and HF_HUB_OFFLINE is set. Unset it, {by_hand}"
        if _unreachable(error):
            return (
                f"{missing} and the hub ({self.endpoint}) cannot be reached: "
                f"{_first_line(error)}. Check the connection, {by_hand}"
            )
        if isinstance(error, errors.HfHubHTTPError):
            return f"{missing} and {self.refusal(error, filename)}"
        if isinstance(error, errors.FileMetadataError):
            return (
                f"{missing} and {self.url(filename)} is answered without the header ETag or X-Repo-Commit, so not by a "
                f"hub or a mirror of one (docs/ship.md). Check HF_ENDPOINT, {by_hand}"
            )
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            place = f"{filename} of {self.repo} in the cache ({self.cache})"
            return f"no space is left for {place}. Free some, or set HF_HOME."
        if isinstance(error, OSError) and error.errno:
            return f"the cache ({self.cache}) cannot be written: {error.strerror}. Set HF_HOME to a writable folder."
        return f"{missing} and the hub ({self.endpoint}) broke off: {_first_line(error)}. Try again, {by_hand}"

    @property
    def endpoint(self) -> str:
        from huggingface_hub import constants

        return constants.ENDPOINT

    def url(self, filename: str) -> str:
        """Return the address of a file on the hub."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, filename, revision=self.revision)

    def refusal(self, error: Any, filename: str) -> str:
        """Return what the hub's HTTP status for a file means for the user."""
        from huggingface_hub import errors

        status, hub = error.response.status_code, f"the hub ({self.endpoint})"
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return f"{hub} requires permission for it ({status}). Request access on its page, then set HF_TOKEN."
        if isinstance(error, errors.RevisionNotFoundError):
            return f'{hub} has no revision "{self.revision}" of it. Try it without @{self.revision}'
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            where = f"({status} for {self.url(filename)})"
            return f"{hub} has no such repository, or it is private {where}. Check the name, or set HF_TOKEN."
        if status == 429:
            return f"{hub} received too many requests (429). Wait some minutes, or set HF_TOKEN."
        return f"{hub} answers with status {status}. Try again later"


def _bar(repo: str, progress: Progress) -> Any:
    """Return a class that replaces huggingface_hub's progress bar and reports the bytes to `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, total: float | None = None, initial: float = 0, **options: Any) -> None:
            super().__init__(*args, total=total, initial=initial, **options | {"disable": True})  # type: ignore[no-untyped-call]
            progress.start(f"fetching {repo}", None if total is None else int(total - initial), "bytes")

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignore transferred bytes, which `update` reports too. Without this method they get a second bar."""

    return Bar


@contextmanager
def _quietly() -> Iterator[None]:
    """Disable huggingface_hub's telemetry, the request that identifies its caller, and warnings that errors repeat."""
    from huggingface_hub import constants

    logger = logging.getLogger("huggingface_hub")
    before, level = constants.HF_HUB_DISABLE_TELEMETRY, logger.level
    constants.HF_HUB_DISABLE_TELEMETRY = True
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_DISABLE_TELEMETRY = before
        logger.setLevel(level)


@contextmanager
def _checked_metadata(place: str) -> Iterator[Callable[..., Any]]:
    """While it lasts, huggingface_hub takes only plain words for a file's ETag and commit: both become paths.

    Raises:
        DamagedError: by every call that would take another one. Nothing is written then.
    """
    from huggingface_hub import file_download

    original = file_download.get_hf_file_metadata

    def checked(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        for what, value in (("ETag", found.etag), ("commit", found.commit_hash)):
            if value is not None and not _PLAIN.fullmatch(value):
                raise DamagedError(
                    f"{place} announces a file with the {what} {value[:40]!r}, which is no digest. Nothing was "
                    "written. Set HF_ENDPOINT to a hub that you trust."
                )
        return found

    file_download.get_hf_file_metadata = checked
    try:
        yield checked
    finally:
        file_download.get_hf_file_metadata = original


def _blob(path: Path) -> Path:
    """Return the file that a cache entry links to, resolving one link: the blob may be a link to a shared store."""
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path


def _unreachable(error: Exception) -> bool:
    # huggingface_hub has changed its HTTP client before, so errors are compared by name
    return type(error).__name__ in ("OfflineModeIsEnabled", *_NO_CONNECTION)


def _first_line(error: Exception) -> str:
    from huggingface_hub import get_token

    hidden = str(error).replace((get_token() or "").strip() or "***", "***")
    return next((line.rstrip(".")[:160] for line in hidden.strip().splitlines()), type(error).__name__)
