"""Fetch weights into the hub's cache, or verify cached ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dla.errors import DlaError, UnavailableError, UsageError
from dla.models.registry import TABLE
from dla.types import NO_PROGRESS, Progress
from dla.weights import hub
from dla.weights.shards import stored_bytes
from dla.weights.spec import CacheDir, ModelFiles, ModelSource, resolve_source

ALL = "all"


@dataclass(frozen=True, slots=True)
class PullResult:
    """A set of weights: its name and its file in the cache, or the error.

    `fetched` is False if the file was cached already. `sha256` is that of the file.
    """

    name: str
    path: Path | None = None
    size_bytes: int = 0
    sha256: str = ""
    fetched: bool = False
    error: DlaError | None = None


def pull(names: Iterable[str], *, cache_dir: CacheDir = None, progress: Progress = NO_PROGRESS) -> Iterator[PullResult]:
    """Fetch weights into the hub's cache, unless they are there undamaged. Yield one result per name.

    Args:
        names: networks of the table, `hf-hub:owner/name[@revision]`, or "all" for every released network.
        cache_dir: the hub's cache, by default huggingface_hub's own.
        progress: receives the downloaded bytes.

    Raises:
        UsageError: if a name is not on the hub; nothing is fetched then.
    """
    return (_pulled(name, source, cache_dir, progress) for name, source in _on_hub(names))


def verify(names: Iterable[str] = (), *, cache_dir: CacheDir = None) -> Iterator[PullResult]:
    """Check cached weights against the hub's digest, and load them strictly. Yield one result per name.

    Without names, check all cached weights of the table's networks. This works offline.

    Raises:
        UsageError: if a name is not on the hub.
    """
    chosen = _on_hub(names)
    if not chosen:
        chosen = [named for named in _on_hub([ALL]) if hub.locate(named[1].where, cache_dir=cache_dir)]
    return (_verified(name, source, cache_dir) for name, source in chosen)


def _on_hub(names: Iterable[str]) -> list[tuple[str, ModelSource]]:
    released = [r.name for r in TABLE.values() if r.tag]
    sources = []
    for name in dict.fromkeys(one for word in names for one in (released if word == ALL else [word])):
        source = resolve_source(name)
        if source.kind != "hub":
            raise UsageError(f"{name} is a local model, which cannot be pulled from the hub. Try: dla info {name}")
        sources.append((name, source))
    return sources


def _pulled(name: str, source: ModelSource, cache_dir: CacheDir, progress: Progress) -> PullResult:
    before = _stamp(hub.locate(source.where, source.revision, cache_dir=cache_dir))
    try:
        files = hub.fetch(source.where, source.revision, cache_dir=cache_dir, repair=True, progress=progress)
    except DlaError as error:
        return PullResult(name, error=error)
    path = files.weights_path
    return PullResult(name, path, len(files.weights), files.sha256, fetched=_stamp(path) != before)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Return what distinguishes a file from one that replaces it."""
    if path is None:
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _verified(name: str, source: ModelSource, cache_dir: CacheDir) -> PullResult:
    from dla.weights.load import load_any  # imports torch, which fetching does not need

    path = hub.locate(source.where, source.revision, cache_dir=cache_dir)
    try:
        if path is None:
            where = hub.cache_folder(cache_dir)
            raise UnavailableError(f"{source.where} is not in the cache ({where}). Try: dla pull {name}")
        loaded = load_any(ModelFiles(name, source, cache_dir))
    except DlaError as error:
        return PullResult(name, path, error=error)
    return PullResult(name, path, stored_bytes(path), loaded.digest)
