"""Files of the hub: the cache first, the network only on a miss, every file verified before it is used.

huggingface_hub does the work and reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN when it is
imported, which happens at the first use of this module's functions.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dla.errors import DamagedError, UnavailableError, UsageError
from dla.types import NO_PROGRESS, Progress
from dla.weights.model_folder import CONFIG, WEIGHT_NAMES

__all__ = ["HubFiles", "cache_folder", "fetch", "fetch_config", "locate"]


WEIGHTS = WEIGHT_NAMES[:2]  # the first that is there

# Nothing about this machine: instead of huggingface_hub's list of installed packages.
_HEADERS = {"user-agent": "dla"}
_PLAIN = re.compile(r"[\w-]{1,128}")  # a digest, or a tag such as a bucket's
_COMMIT = re.compile(r"[0-9a-f]{40}")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class HubFiles:
    """A repository at one commit: its config and its weights, as they were announced; `sha256` is of the weights."""

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
    """Config and weights of a hub repository (owner/name), both of the same commit.

    With `repair` a file that is damaged in the cache is fetched again. `progress` is told of the bytes that arrive.

    Raises:
        UnavailableError: not in the cache and not to be had; the message says where it was looked for.
        DamagedError: a file is not what the hub announced.
        UsageError: not the name of a repository.
    """
    wanted = _Wanted(repo, revision or "main", cache_folder(cache_dir), repair, _name(repo, revision), progress)
    with _explained(wanted):
        config, fresh = wanted.read(CONFIG)
        found = _with_weights(wanted, config)
        if found is None and not fresh:  # what is cached was incomplete; the branch may have moved on since
            found = _with_weights(wanted, wanted.fetched(CONFIG))
    if found is None:
        raise UnavailableError(f"{wanted.place} has no weights: neither {' nor '.join(WEIGHTS)}.")
    return found


def fetch_config(repo: str, revision: str | None = None, *, cache_dir: str | os.PathLike[str] | None = None) -> bytes:
    """The config of a hub repository alone; raises as `fetch`."""
    wanted = _Wanted(repo, revision or "main", cache_folder(cache_dir), name=_name(repo, revision))
    with _explained(wanted):
        return wanted.read(CONFIG)[0].data


@contextmanager
def _explained(wanted: _Wanted) -> Iterator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except _AbsentError:
        raise UnavailableError(f"{wanted.place} has no {CONFIG}, so it is no model that can be loaded.") from None
    except HFValidationError as error:
        raise UsageError(f'"{wanted.repo}" cannot be the name of a repository. Allowed: owner/name') from error


def locate(repo: str, revision: str | None = None, *, cache_dir: str | os.PathLike[str] | None = None) -> Path | None:
    """The cached file of weights, with its config beside it; None where `fetch` would have to ask the hub.

    Nothing is read or verified. huggingface_hub could answer too, but takes longer to import than all of `dla models`.
    """
    home = cache_folder(cache_dir) / f"models--{repo.replace('/', '--')}"
    wanted = revision or "main"
    try:
        ref = home / "refs" / wanted
        commit = ref.read_text().strip() if ref.is_file() else wanted
        snapshot = home / "snapshots" / commit
        for name in WEIGHTS if (snapshot / CONFIG).is_file() else ():
            if (snapshot / name).is_file():
                return snapshot / name
            if not (home / ".no_exist" / commit / name).exists():
                return None  # the hub may have it
    except OSError:
        pass  # a cache that may not be read
    return None


def _with_weights(wanted: _Wanted, config: _File) -> HubFiles | None:
    """The repository as it was at the config's commit: a branch may move between two requests, a commit does not."""
    pinned = replace(wanted, revision=config.path.parent.name)
    for name in WEIGHTS:
        try:
            weights, _ = pinned.read(name)
        except _AbsentError:
            continue
        return HubFiles(pinned.repo, pinned.revision, config.data, weights.data, weights.path, weights.sha256)
    return None


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where files of the hub are kept: `cache_dir`, else what huggingface_hub's variables say."""
    from huggingface_hub import constants

    return Path(os.path.expanduser(cache_dir or constants.HF_HUB_CACHE))


def _name(repo: str, revision: str | None) -> str:
    """What `dla pull` takes."""
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
        from huggingface_hub import constants

        revision = "" if self.revision == "main" else f" at {self.revision[:12]}"
        return f"{self.repo}{revision} on the hub ({constants.ENDPOINT})"

    def read(self, filename: str) -> tuple[_File, bool]:
        """The file, and whether it had to be fetched."""
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
            raise _AbsentError  # a commit never gets another file; a branch may
        return self.fetched(filename), True

    def fetched(self, filename: str, *, again: bool = False) -> _File:
        """The file from the hub, thrown away again if it is not what the hub announced.

        `again`: in place of what the cache has, which stays until the new one is whole.
        """
        path = self.download(filename, again)
        try:
            return self.verified(path)
        except DamagedError as error:
            if (blob := _blob(path)).parent == path.parents[2] / "blobs":  # nothing outside the repository's own
                blob.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise DamagedError(
                f"{filename} of {self.place} arrived other than announced and was thrown away. Try: once more."
            ) from error

    def download(self, filename: str, again: bool) -> Path:
        from huggingface_hub import hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        def explained(error: Exception) -> Exception:
            if isinstance(error, DamagedError):
                return error
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                return _AbsentError()
            return UnavailableError(self.explain(error, filename, again))

        with _quietly(), _checked_metadata(self.place) as metadata:
            try:
                # hf_hub_download retries a hub that is unreachable or busy for half a minute; one question first tells
                # that at once.
                metadata(hf_hub_url(self.repo, filename, revision=self.revision), headers=_HEADERS)
            except Exception as error:
                refused = isinstance(error, HfHubHTTPError) and not isinstance(error, EntryNotFoundError)
                if refused or isinstance(error, DamagedError) or _unreachable(error):
                    raise explained(error) from error
            try:
                got = hf_hub_download(
                    self.repo,
                    filename,
                    revision=self.revision,
                    cache_dir=self.cache,
                    headers=_HEADERS,
                    tqdm_class=_bar(self.repo, self.progress),
                    force_download=again,
                )
            except Exception as error:  # of huggingface_hub, of the HTTP client it uses, of the disk
                raise explained(error) from error
        return Path(got)

    def verified(self, path: Path) -> _File:
        """A cached file, compared with the digest that the hub announced and the cache is named after."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnavailableError(f"{path} cannot be read: {error.strerror}.") from error
        announced, sha256 = _blob(path).name, hashlib.sha256(data).hexdigest()
        if re.fullmatch(r"[0-9a-f]{64}", announced):
            found = sha256
        elif re.fullmatch(r"[0-9a-f]{40}", announced):
            found = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's name for a small file
        else:
            found = announced  # a cache without symlinks, or a hub that announces something else
        if found != announced:
            raise DamagedError(
                f"{path.name} of {self.repo} is damaged in the cache ({len(data)} bytes, digest {found[:8]}, "
                f"announced {announced[:8]}). Try: dla pull {self.name}, or remove {_blob(path)}: it is fetched again."
            )
        return _File(path, data, sha256)

    def explain(self, error: Exception, filename: str, damaged: bool) -> str:
        """One or two sentences for a failed download; `damaged` is what the cache has."""
        from huggingface_hub import errors

        if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        by_hand = f"By hand: put {CONFIG} and {WEIGHTS[0]} of {self.repo} into a folder and give its path as the model."
        missing = f"{filename} of {self.repo} is {'damaged' if damaged else 'not'} in the cache ({self.cache})"
        if isinstance(error, errors.OfflineModeIsEnabled):
            return f"{missing} and HF_HUB_OFFLINE forbids to ask the hub. {by_hand}"
        if _unreachable(error):
            return f"{missing} and the hub ({self.endpoint}) cannot be reached: {_first_line(error)}. {by_hand}"
        if isinstance(error, errors.HfHubHTTPError):
            return f"{missing} and {self.refusal(error)}"
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return (
                f"no space left for {filename} of {self.repo} in the cache ({self.cache}). Free some, or set HF_HOME."
            )
        if isinstance(error, OSError) and error.errno:
            return f"the cache ({self.cache}) cannot be written: {error.strerror}. Set HF_HOME to a folder that can."
        return f"{missing} and the hub ({self.endpoint}) broke off: {_first_line(error)}. Try: once more. {by_hand}"

    @property
    def endpoint(self) -> str:
        from huggingface_hub import constants

        return constants.ENDPOINT

    def refusal(self, error: Any) -> str:
        """What the hub's HTTP status means, for the user."""
        from huggingface_hub import errors

        status, hub = error.response.status_code, f"the hub ({self.endpoint})"
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return f"{hub} wants permission for it ({status}). Ask for access on its page, then set HF_TOKEN."
        if isinstance(error, errors.RevisionNotFoundError):
            return f'{hub} has no revision "{self.revision}" of it. Try: without @{self.revision}'
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            return f"{hub} has no such repository, or it is private ({status}). Check the name, or set HF_TOKEN."
        if status == 429:
            return f"{hub} has had too many requests from here (429). Wait some minutes, or set HF_TOKEN."
        return f"{hub} answers {status}. Try: later"


def _bar(repo: str, progress: Progress) -> Any:
    """In place of huggingface_hub's progress bar: draws nothing, and tells `progress` of each file's bytes."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, total: float | None = None, initial: float = 0, **options: Any) -> None:
            super().__init__(*args, total=total, initial=initial, **options | {"disable": True})  # type: ignore[no-untyped-call]
            progress.start(f"fetching {repo}", None if total is None else int(total - initial), "bytes")

        def update(self, n: float | None = 1) -> None:
            progress.advance(int(n or 0))

        def update_transfer(self, n: float | None = 1) -> None:
            """The same bytes as they come through the network; where there is this, there is no second bar for them."""

    return Bar


@contextmanager
def _quietly() -> Iterator[None]:
    """No question about the program that calls (huggingface_hub asks the hub how to name it), no list of packages.

    Warnings about little disk space and about each retry are left out too: what comes of it, the error says.
    """
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
    """The file that a cache entry links to. One step only: the blob may itself be a link to a shared store."""
    return Path(os.path.normpath(path.parent / os.readlink(path))) if path.is_symlink() else path


def _unreachable(error: Exception) -> bool:
    # The HTTP client is huggingface_hub's choice (it has changed), so its errors are known by name.
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in (
        "ConnectError",
        "ConnectTimeout",
        "ProxyError",
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".")[:160] if lines else type(error).__name__
