"""Weights into the cache, or a check of those that are there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dla.errors import DlaError, UnavailableError, UsageError
from dla.models.registry import TABLE
from dla.types import NO_PROGRESS, Progress
from dla.weights import hub
from dla.weights.spec import ModelFiles, ModelSource, resolve_source

__all__ = ["PullResult", "pull", "verify"]


ALL = "all"

CacheDir = str | os.PathLike[str] | None


@dataclass(frozen=True, slots=True)
class PullResult:
    """One set of weights: what it is called, and its file in the cache, or why there is none that is whole.

    `fetched` is False where it was there already. `sha256` is the file's.
    """

    name: str
    path: Path | None = None
    size_bytes: int = 0
    sha256: str = ""
    fetched: bool = False
    error: DlaError | None = None


def pull(names: Iterable[str], *, cache_dir: CacheDir = None, progress: Progress = NO_PROGRESS) -> Iterator[PullResult]:
    """Fetch weights into the hub's cache, one record a name; the network is asked only for what is not there whole.

    Args:
        names: networks of the table, `hf-hub:owner/name[@revision]`, or "all" for every released network.
        cache_dir: in place of huggingface_hub's own cache.
        progress: told of the bytes of each file.

    Raises:
        UsageError: a name of something else. Nothing was fetched then.
    """
    return (_pulled(name, source, cache_dir, progress) for name, source in _on_hub(names))


def verify(names: Iterable[str] = (), *, cache_dir: CacheDir = None) -> Iterator[PullResult]:
    """Check weights in the cache: the digest that the hub announced, and a strict load into their network.

    Without names, all those of the table's networks that are in the cache. The network is never asked.

    Raises:
        UsageError: as `pull`.
    """
    chosen = _on_hub(names)
    if chosen:
        return (_verified(name, source, cache_dir) for name, source in chosen)
    released = _on_hub([ALL])
    cached = [(name, source) for name, source in released if hub.locate(source.where, cache_dir=cache_dir)]
    return (_verified(name, source, cache_dir) for name, source in cached)


def _on_hub(names: Iterable[str]) -> list[tuple[str, ModelSource]]:
    released = [r.name for r in TABLE.values() if r.tag]
    found = []
    for name in dict.fromkeys(one for given in names for one in (released if given == ALL else [given])):
        source = resolve_source(name)
        if source.kind != "hub":
            raise UsageError(f"{name} is here already, it does not come from the hub. Try: dla info {name}")
        found.append((name, source))
    return found


def _pulled(name: str, source: ModelSource, cache_dir: CacheDir, progress: Progress) -> PullResult:
    before = _stamp(hub.locate(source.where, source.revision, cache_dir=cache_dir))
    try:
        files = hub.fetch(source.where, source.revision, cache_dir=cache_dir, repair=True, progress=progress)
    except DlaError as error:
        return PullResult(name, error=error)
    path = files.weights_path
    return PullResult(name, path, len(files.weights), files.sha256, fetched=_stamp(path) != before)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """Tells one file from another that takes its place."""
    if path is None:
        return None
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _verified(name: str, source: ModelSource, cache_dir: CacheDir) -> PullResult:
    from dla.weights.load import load_model  # takes torch, which fetching does not need

    path = hub.locate(source.where, source.revision, cache_dir=cache_dir)
    try:
        if path is None:
            where = hub.cache_folder(cache_dir)
            raise UnavailableError(f"{source.where} is not in the cache ({where}). Try: dla pull {name}")
        opened = load_model(ModelFiles(name, source, cache_dir))
    except DlaError as error:
        return PullResult(name, path, error=error)
    return PullResult(name, path, path.stat().st_size, opened.digest)
