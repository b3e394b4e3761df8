"""A running service over a network that needs no engine: its answer names the photo that it was given."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dla.engines.base import Engine
from dla.images.preprocessing import Preprocessing
from dla.inference.classifier import Classifier
from dla.inference.pipeline import PreparedInput
from dla.options import ServeOptions
from dla.serving.listen import open_socket, run_service
from dla.serving.served_model import BatchWork, ServedModel
from dla.serving.service import Service
from dla.types import Array, ClassName
from dla.weights.model_folder import ModelConfig

CLASSES = 8


class MeanEngine(Engine):
    """The mean of each colour decides: photos of one colour have probabilities of their own."""

    name = "mean"
    max_concurrent = 2

    def __init__(self, before: Callable[[Array], None] = lambda pixels: None) -> None:
        self.before, self.batches = before, list[int]()

    def _check_node(self, at: str) -> None:
        assert at == "pre_logits"

    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        self.before(pixels_NHW3)
        self.batches.append(len(pixels_NHW3))
        means_N3 = pixels_NHW3.mean((1, 2)).astype(np.float32)
        if at is not None:
            return means_N3
        scores_NK = np.concatenate([means_N3 / 64, np.tile(np.arange(CLASSES - 3) / 8, (len(means_N3), 1))], 1)
        exps = np.exp(scores_NK)
        return (exps / exps.sum(1, keepdims=True)).astype(np.float32)


def mean_classifier(engine: MeanEngine | None = None) -> Classifier:
    classes = tuple(ClassName(f"c{k}", f"class {k}", "") for k in range(CLASSES))
    config = ModelConfig("tiny", CLASSES, tuple(c.class_id for c in classes))
    preprocessing = Preprocessing((16, 16), 1.0)
    return Classifier(engine or MeanEngine(), preprocessing, classes, config, "mean", "0" * 64)


def colored(red: int, green: int, blue: int) -> bytes:
    """A small photo of one colour, as PNG."""
    file = io.BytesIO()
    Image.new("RGB", (20, 20), (red, green, blue)).save(file, "PNG")
    return file.getvalue()


@dataclass
class Running:
    """A service and its port."""

    service: Service
    port: int

    def connect(self, timeout: float = 20) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer to a request on a connection of its own."""
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def record(self, path: str, body: bytes, **headers: str) -> Any:
        status, _, answer = self.ask("POST", path, body, headers)
        assert status == 200, answer
        return json.loads(answer)

    def metric(self, line: str) -> float:
        """The value of one line of /metrics, 0 if it is not there."""
        text = self.ask("GET", "/metrics")[2].decode()
        return next((float(one.rpartition(" ")[2]) for one in text.splitlines() if one.startswith(f"{line} ")), 0.0)


@contextmanager
def serving(
    network: Any = None, load: Callable[[ServeOptions], ServedModel] | None = None, **options: Any
) -> Iterator[Running]:
    """A service in a thread of this process, on a port of its own, once it is ready."""
    settings = ServeOptions(**{"port": 0, "drain": 0.0, "grace": 0.5, **options})

    def given() -> ServedModel:
        if load is not None:
            return load(settings)
        return ServedModel(network or mean_classifier(), settings, {"schema": "dla.info/1"})

    service = Service(settings, "mean", given, 5)
    listener, is_ready = open_socket(service.options), threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            run_service(service, listener, is_ready.set, may_reload=True)
        except BaseException as error:
            failures.append(error)
            is_ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_ready.wait(60)
    assert not failures, failures
    try:
        yield Running(service, listener.getsockname()[1])
    finally:
        service.server.end()
        thread.join(30)
        assert not thread.is_alive()


def wait_until(is_so: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def serve_slowly(seconds: float, may_reload: bool = True) -> None:
    """The main part of a process: a service whose engine takes so long, until a signal ends it."""
    settings = ServeOptions(port=0, drain=0.3, grace=5)
    classifier = mean_classifier(MeanEngine(lambda pixels: time.sleep(seconds)))
    service = Service(settings, "mean", lambda: ServedModel(classifier, settings, {}), 5)
    with open_socket(settings) as listener:
        run_service(service, listener, lambda: print(listener.getsockname()[1], flush=True), may_reload=may_reload)


def serve_nothing() -> None:
    """The main part of a process: a service that neither decodes nor computes, to measure the rest."""
    settings = ServeOptions(port=0, queue=1000)
    model = ServedModel(mean_classifier(), settings, {})
    pixels, row = np.zeros((16, 16, 3), np.uint8), np.full(CLASSES, 1 / CLASSES, np.float32)
    work = BatchWork(model.reader, lambda pixels_NHW3: np.tile(row, (len(pixels_NHW3), 1)), settings.max_batch)
    work.read = lambda name, photo: PreparedInput(name, (pixels,))  # type: ignore[method-assign]
    model.__dict__["prediction"] = work
    service = Service(settings, "mean", lambda: model, 5)
    with open_socket(settings) as listener:
        run_service(service, listener, lambda: print(listener.getsockname()[1], flush=True), may_reload=False)
