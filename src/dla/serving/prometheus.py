"""Counters of the service, as Prometheus' text."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping

STAGES = ("queue", "decode", "engine", "total")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_PHOTOS = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values up to each bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """Yield the lines of the histogram."""
        total = 0
        comma = "," if labels else ""
        for bound, count in zip((*map(_number, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self.sum:.6f}"
        yield f"{name}_count{braces} {total}"


class Counters:
    """What the service counts. Only the event loop's thread counts."""

    def __init__(self) -> None:
        self.requests = Counter[tuple[str, int]]()
        self.photos = Counter[str]()
        self.rejected = Counter[str]()
        self.reloads = self.reload_failures = 0
        self.batches = Histogram(_PHOTOS)
        self.seconds = {stage: Histogram(_SECONDS) for stage in STAGES}

    def reject(self, reason: str) -> None:
        """Count a request that was not answered."""
        self.rejected[reason] += 1

    def batch(self, photos: int) -> None:
        """Count a batch."""
        self.batches.add(photos)

    def text(self, gauges: Mapping[str, float], info: Mapping[str, str]) -> str:
        """Return all counters, with values of the moment and facts about the model, as Prometheus reads them."""
        return "\n".join([*self._lines(gauges, info), ""])

    def _lines(self, gauges: Mapping[str, float], info: Mapping[str, str]) -> Iterator[str]:
        yield from _head("dla_requests_total", "counter", "Requests by route and status.")
        for (route, status), count in sorted(self.requests.items()):
            yield f'dla_requests_total{{route="{_escaped(route)}",code="{status}"}} {count}'
        for name, label, counts, what in (
            ("dla_photos_total", "result", self.photos, "Photos by result: ok, or the code of the error."),
            ("dla_rejected_total", "reason", self.rejected, "Requests that were refused or came to nothing."),
        ):
            yield from _head(name, "counter", what)
            for key, count in sorted(counts.items()):
                yield f'{name}{{{label}="{_escaped(key)}"}} {count}'
        yield from _head("dla_reloads_total", "counter", "Models loaded at SIGHUP.")
        yield f"dla_reloads_total {self.reloads}"
        yield from _head("dla_reload_failures_total", "counter", "Models that did not load at SIGHUP.")
        yield f"dla_reload_failures_total {self.reload_failures}"
        yield from _head("dla_batch_photos", "histogram", "Photos that the engine took at once.")
        yield from self.batches.lines("dla_batch_photos")
        yield from _head("dla_seconds", "histogram", "Seconds of a request by stage.")
        for stage, histogram in self.seconds.items():
            yield from histogram.lines("dla_seconds", f'stage="{stage}"')
        for name, value in gauges.items():
            yield from _head(name, "gauge", _GAUGES[name])
            yield f"{name} {_number(value)}"
        yield from _head("dla_info", "gauge", "The model that answers.")
        facts = ",".join(f'{key}="{_escaped(value)}"' for key, value in info.items())
        yield f"dla_info{{{facts}}} 1"


_GAUGES = {
    "dla_queue_photos": "Photos that wait or are in work.",
    "dla_body_bytes": "Bytes of bodies in memory.",
    "dla_connections": "Open connections.",
    "dla_ready": "1 if requests are answered.",
}


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"


def _number(value: float) -> str:
    return f"{value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
