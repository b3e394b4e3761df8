"""The service: loads its model, starts, reloads, drains and ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from uvicorn import Server

from dla.errors import DlaError, UsageError, sentence
from dla.options import ServeOptions
from dla.serving.answers import RequestError
from dla.serving.guard import Guard
from dla.serving.prometheus import Counters
from dla.serving.queue import PhotoQueue
from dla.serving.served_model import ServedModel
from dla.version import __version__

logger = logging.getLogger("dla.serving")


class Service:
    """The state of a service. Its methods belong to the event loop's thread.

    Args:
        options: where and how it listens.
        name: the model's name.
        load: loads the model and warms it up; called in a thread.
        topk: the classes of an answer, unless the request says.
    """

    def __init__(self, options: ServeOptions, name: str, load: Callable[[], ServedModel], topk: int) -> None:
        self.options, self.name, self.load, self.topk = options, name, load, topk
        self.guard, self.counters = Guard(options), Counters()
        self.phase: Literal["loading", "ready", "draining"] = "loading"
        self.current: ServedModel | None = None
        self.problem: BaseException | None = None  # why it could not start
        self.queue: PhotoQueue
        self.server: Server
        self.is_reloading = self.reload_again = False

    def model(self) -> ServedModel:
        """Return the model that answers.

        Raises:
            RequestError: it is not loaded yet.
        """
        if self.current is None:
            self.counters.reject("loading")
            raise RequestError(503, "loading", "the model is not loaded yet. Try again in 1 s", retry_after=1)
        return self.current

    def start(self, on_ready: Callable[[], None]) -> None:
        """Load the model in a thread; the event loop must run. If that fails, the service ends with `problem`."""
        loop = asyncio.get_running_loop()
        self.queue = PhotoQueue(self.options, self.counters, loop)

        def done(model: ServedModel | None, problem: BaseException | None) -> None:
            if model is None:
                self.problem = problem
                self.server.should_exit = True
                return
            self._use(model)
            if self.phase == "loading":
                self.phase = "ready"
                on_ready()

        self._load_aside(loop, done)

    def _use(self, model: ServedModel) -> None:
        self.current = model
        self.queue.start_engine(model.network.engine.max_concurrent)

    def _load_aside(
        self, loop: asyncio.AbstractEventLoop, done: Callable[[ServedModel | None, BaseException | None], None]
    ) -> None:
        def run() -> None:
            model: ServedModel | None = None
            problem: BaseException | None = None
            try:
                model = self.load()
            except BaseException as error:
                problem = error
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(done, model, problem)

        threading.Thread(target=run, name="dla-load", daemon=True).start()

    def reload(self) -> None:
        """Load the model anew beside the old one, and then use it; if it does not load, the old one stays."""
        if self.phase != "ready":
            return
        if self.is_reloading:
            self.reload_again = True
            return
        try:
            self.guard.read_token_again()
        except UsageError as error:
            logger.error("%s. The old token stays", error)
        self.is_reloading = True
        logger.warning("loading %s anew", self.name)
        self._load_aside(asyncio.get_running_loop(), self._reloaded)

    def _reloaded(self, model: ServedModel | None, problem: BaseException | None) -> None:
        self.is_reloading = False
        if self.phase != "ready":
            return  # SIGTERM came first
        assert self.current is not None
        if model is not None and model.task != self.current.task:
            problem = UsageError(f"it has the task {model.task}, this service {self.current.task}")
        if problem is None and model is not None:
            self._use(model)
            self.counters.reloads += 1
            logger.warning("now answering with %s, SHA-256 %s", self.name, model.network.sha256[:12])
        else:
            self.counters.reload_failures += 1
            known = isinstance(problem, DlaError | OSError | MemoryError)
            logger.error("%s was not loaded: %s. The old model stays", self.name, sentence(problem or Exception()),
                         exc_info=None if known else problem)  # fmt: skip
        if self.reload_again:
            self.reload_again = False
            self.reload()

    def begin_drain(self) -> None:
        """Report not ready; answer, but close each connection."""
        self.phase = "draining"
        logger.warning("stopping: new requests are answered for %g s", self.options.drain)

    def ready_reason(self) -> str | None:
        """Return why the service is not ready, or None."""
        return None if self.phase == "ready" else self.phase

    def live_reason(self) -> str | None:
        """Return why the service should be started anew, or None."""
        stuck = self.queue.stuck_s()
        return f"the engine has not answered for {stuck:.0f} s" if stuck > 2 * self.options.timeout else None

    def metrics(self) -> str:
        """Return the counters as Prometheus reads them."""
        gauges = {
            "dla_queue_photos": float(self.queue.photos),
            "dla_body_bytes": float(self.queue.body_bytes),
            "dla_connections": float(len(self.server.server_state.connections)),
            "dla_ready": float(self.phase == "ready"),
        }
        info = {"version": __version__, "model": self.name}
        if self.current is not None:
            network = self.current.network
            info |= {"sha256": network.sha256, "engine": network.engine.name, "task": self.current.task}
        return self.counters.text(gauges, info)
