"""The queue of photos: a bounded number waits; threads decode them; the engine takes whatever is ready as a batch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from dla.inference.pipeline import PhotoInput, PreparedInput
from dla.options import ServeOptions
from dla.serving.answers import RequestError
from dla.serving.prometheus import Counters

DECODING = 2  # times of a photo that is being decoded
MOST_DECODERS = 4  # times `decoders`, while some are at photos that take too long
MOST_BODY_BYTES = 256 * 1024 * 1024  # of all requests together


class Work:
    """What a model is asked. Photos with one and the same work may be computed together, `most` at a time."""

    most = 1
    decodes = False

    def read(self, name: str, photo: PhotoInput) -> PreparedInput:
        """Prepare a photo for the network; called if `decodes`."""
        raise NotImplementedError

    def compute(self, jobs: Sequence[Job]) -> Sequence[Any]:
        """Return the result of each photo."""
        raise NotImplementedError


@dataclass(eq=False, slots=True)
class Job:
    """One photo on its way. `finish` makes the answer of the prepared input and its result, None if it has an error."""

    work: Work
    name: str
    photo: PhotoInput
    finish: Callable[[PreparedInput, Any], Any]
    answer: asyncio.Future[Any]
    times: list[float] = field(default_factory=list)  # queued, decoding, decoded, computing, computed
    prepared: PreparedInput | None = None
    timer: asyncio.TimerHandle | None = None
    is_begun: bool = False  # a thread is at it
    is_dropped: bool = False
    is_counted: bool = True

    def seconds(self) -> dict[str, float]:
        """Return the seconds in the queue, in decoding and in the engine."""
        queued, decoding, decoded, computing, computed = (*self.times, *[self.times[-1]] * 4)[:5]
        return {
            "queue": decoding - queued + computing - decoded,
            "decode": decoded - decoding,
            "engine": computed - computing,
        }


class PhotoQueue:
    """Admits photos, decodes them and has them computed. Its methods belong to the event loop's thread."""

    def __init__(self, options: ServeOptions, counters: Counters, loop: asyncio.AbstractEventLoop) -> None:
        self.options, self.counters, self.loop = options, counters, loop
        self.photos = self.body_bytes = 0
        self.undecoded: SimpleQueue[Job | Callable[[], None] | None] = SimpleQueue()
        self.ready: SimpleQueue[Job | None] = SimpleQueue()
        self.running: dict[int, float] = {}  # when each engine thread began its batch
        self.decoders = 0
        for _ in range(options.decoders):
            self._start_decoder()

    def _start_decoder(self) -> None:
        self.decoders += 1
        threading.Thread(target=self._decode, name="dla-decode", daemon=True).start()

    def start_engine(self, threads: int) -> None:
        """Have as many threads as run the engine best, or more if there are already."""
        for number in range(len(self.running), threads):
            self.running[number] = 0.0
            threading.Thread(target=self._compute, args=(number,), name="dla-engine", daemon=True).start()

    def close(self) -> None:
        """End the threads after what they are at."""
        for _ in range(self.decoders):
            self.undecoded.put(None)
        for _ in self.running:
            self.ready.put(None)

    def stuck_s(self) -> float:
        """Return for how many seconds the engine has been at the same batch."""
        began = min((at for at in self.running.values() if at), default=0.0)
        return time.perf_counter() - began if began else 0.0

    def check(self, body_bytes: int = 0, photos: int = 1) -> None:
        """Raise a RequestError if there is no place for a request."""
        if self.photos + photos > self.options.queue:
            what = f"{self.photos} photos are waiting"
        elif self.body_bytes + body_bytes > MOST_BODY_BYTES:
            what = f"requests of {self.body_bytes / 1e6:.0f} MB are waiting"
        else:
            return
        self.counters.reject("busy")
        raise RequestError(503, "busy", f"{what}. Try again in 1 s", retry_after=1)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the photos of a request.

        Raises:
            RequestError: there is no place.
        """
        self.check(photos=len(jobs))
        now = time.perf_counter()
        self.photos += len(jobs)
        for job in jobs:
            job.times.append(now)
            job.timer = self.loop.call_later(self.options.timeout, self._time_out, job)
            if job.work.decodes:
                self.undecoded.put(job)
            else:
                job.prepared = PreparedInput(job.name)
                job.times += [now, now]
                self.ready.put(job)

    async def off_loop(self, work: Callable[[], Any]) -> Any:
        """Do something in a decoding thread."""
        done: asyncio.Future[Any] = self.loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                self._call_soon(_settle, done, None, error)
            else:
                self._call_soon(_settle, done, result, None)

        self.undecoded.put(run)
        return await done

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget photos that nobody waits for. One that is in work keeps its place until it is done."""
        for job in jobs:
            job.is_dropped = True
            if not job.is_begun:
                self._release(job)
            if not job.answer.done():
                job.answer.cancel()

    def _time_out(self, job: Job) -> None:
        self.counters.reject("too_late")
        if len(job.times) == DECODING and self.decoders < MOST_DECODERS * self.options.decoders:
            self._start_decoder()  # in place of the one that is at this photo, and ends after it
        message = f"the photo was not answered within {self.options.timeout:g} s"
        _settle(job.answer, None, RequestError(504, "too_late", message))
        self.drop([job])

    def _release(self, job: Job) -> None:
        if job.is_counted:
            job.is_counted = False
            self.photos -= 1
            if job.timer is not None:
                job.timer.cancel()

    def _decode(self) -> None:
        has_time = True
        while has_time:
            job = self.undecoded.get()
            if job is None:
                return
            if not isinstance(job, Job):
                job()
                continue
            if job.is_dropped:
                continue
            job.is_begun = True
            job.times.append(time.perf_counter())
            problem: Exception | None = None
            try:
                job.prepared = job.work.read(job.name, job.photo)
            except Exception as error:
                problem = error
            job.photo, job.is_begun = None, False
            job.times.append(time.perf_counter())
            if job.is_dropped:
                self._call_soon(self._release, job)
            elif problem is not None:
                self._finish_soon([job], problem)
            elif job.prepared is not None and job.prepared.error is not None:
                self._finish_soon([job], [None])
            else:
                self.ready.put(job)
            has_time = job.times[DECODING] - job.times[DECODING - 1] < self.options.timeout
        self._call_soon(self._replace_decoder)

    def _replace_decoder(self) -> None:
        self.decoders -= 1
        if self.decoders < self.options.decoders:
            self._start_decoder()

    def _compute(self, number: int) -> None:
        first: Job | None = None
        while True:
            first = first or self.ready.get()
            if first is None:
                return
            batch, first = self._batch_with(first)
            if not batch:
                continue
            began = self.running[number] = time.perf_counter()
            try:
                results: Sequence[Any] | Exception = batch[0].work.compute(batch)
            except Exception as error:
                results = error
            self.running[number], ended = 0.0, time.perf_counter()
            for job in batch:
                job.times += [began, ended]
            self._finish_soon(batch, results)

    def _batch_with(self, first: Job) -> tuple[list[Job], Job | None]:
        """Return what is ready and was asked the same as the first, without what was dropped, and what comes next."""
        batch, dropped = list[Job](), list[Job]()
        job: Job | None = first
        while job is not None and job.work is first.work:
            job.is_begun = not job.is_dropped
            (batch if job.is_begun else dropped).append(job)
            if len(batch) == first.work.most:
                job = None
                break
            try:
                job = self.ready.get_nowait()
            except Empty:
                job = None
                break
            if job is None:
                self.ready.put(None)  # the end, for this thread too
        if dropped:
            self._call_soon(self._release_all, dropped)
        return batch, job

    def _release_all(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._release(job)

    def _finish_soon(self, jobs: Sequence[Job], results: Sequence[Any] | Exception) -> None:
        """Make the answers, in this thread, and hand them to the event loop."""
        answers: list[Any] = []
        for n, job in enumerate(jobs):
            try:
                if isinstance(results, Exception):
                    answers.append(results)
                else:
                    assert job.prepared is not None
                    answers.append(job.finish(job.prepared, results[n]))
            except Exception as error:
                answers.append(error)
        self._call_soon(self._settle_all, list(jobs), answers)

    def _call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the service has ended meanwhile
            self.loop.call_soon_threadsafe(function, *arguments)

    def _settle_all(self, jobs: list[Job], answers: list[Any]) -> None:
        if len(jobs[0].times) == 5:
            self.counters.batch(len(jobs))
        for job, answer in zip(jobs, answers, strict=True):
            self._release(job)
            is_error = isinstance(answer, Exception)
            _settle(job.answer, None if is_error else answer, answer if is_error else None)


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
