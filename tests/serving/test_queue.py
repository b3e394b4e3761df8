"""Many photos at once: each gets its own answer, batches form by themselves, and a full service says so at once."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest

import dla.serving.served_model as served_model
from dla.types import Array
from support.served import MeanEngine, Running, colored, mean_classifier, serving, wait_until

RED = colored(200, 10, 10)


class Gate:
    """Holds the engine until it is opened."""

    def __init__(self) -> None:
        self.is_open, self.waiting = threading.Event(), 0
        self.is_open.set()

    def __call__(self, pixels: Array) -> None:
        self.waiting += 1
        assert self.is_open.wait(30)
        self.waiting -= 1


def hold_engine(running: Running, gate: Gate, pool: ThreadPoolExecutor) -> list[Future[Any]]:
    """Give each of the two threads of the engine a photo, one after the other."""
    held = []
    for n in (1, 2):
        held.append(pool.submit(running.record, "/v1/predict", RED))
        wait_until(lambda n=n: gate.waiting == n)  # type: ignore[misc]
    return held


def test_each_of_many_photos_gets_its_own_answer() -> None:
    engine = MeanEngine()
    classifier = mean_classifier(engine)
    photos = [colored(*color) for color in np.random.default_rng(0).integers(0, 256, (40, 3)).tolist()]
    expected = [classifier.predict(photo).to_dict() for photo in photos]
    with serving(classifier, max_batch=4, decoders=3) as running:
        engine.batches.clear()

        def client(start: int) -> None:
            with closing(running.connect()) as connection:
                for n in range(60):
                    k = (7 * n + start) % len(photos)
                    connection.request("POST", "/v1/predict", photos[k])
                    answer = connection.getresponse()
                    assert answer.status == 200
                    record = json.loads(answer.read())
                    assert record["predictions"][0]["index"] == expected[k]["predictions"][0]["index"]
                    found = [c["probability"] for c in record["predictions"]]
                    assert found == pytest.approx([c["probability"] for c in expected[k]["predictions"]], abs=1e-6)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(client, range(12)))
        assert sum(engine.batches) == 12 * 60
        assert max(engine.batches) <= 4
        assert running.metric("dla_batch_photos_sum") == 12 * 60
        assert running.metric('dla_photos_total{result="ok"}') == 12 * 60
        assert running.metric("dla_queue_photos") == 0


def test_what_waits_becomes_a_batch() -> None:
    gate = Gate()
    engine = MeanEngine(gate)
    with serving(mean_classifier(engine), max_batch=5) as running, ThreadPoolExecutor(9) as pool:
        gate.is_open.clear()
        engine.batches.clear()
        first = hold_engine(running, gate, pool)
        rest = [pool.submit(running.record, "/v1/predict", RED) for _ in range(7)]
        wait_until(lambda: running.service.queue.ready.qsize() == 7)
        gate.is_open.set()
        assert all(future.result()["predictions"] for future in first + rest)
        assert sorted(engine.batches) == [1, 1, 2, 5]


def test_a_full_queue_answers_503_before_the_body_is_sent() -> None:
    gate = Gate()
    with serving(mean_classifier(MeanEngine(gate)), queue=3) as running, ThreadPoolExecutor(3) as pool:
        gate.is_open.clear()
        waiting = [pool.submit(running.record, "/v1/predict", RED) for _ in range(3)]
        wait_until(lambda: running.service.queue.photos == 3)
        with closing(running.connect()) as connection:
            connection.putrequest("POST", "/v1/predict")
            connection.putheader("Content-Length", "30000000")
            connection.endheaders()
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
            error = json.loads(answer.read())["error"]
        assert error["code"] == "busy"
        assert "3 photos are waiting" in error["message"]
        assert running.ask("GET", "/v2/health/ready")[0] == running.ask("GET", "/v2/health/live")[0] == 200
        gate.is_open.set()
        assert all(future.result()["predictions"] for future in waiting)
        assert running.record("/v1/predict", RED)
        assert running.metric('dla_rejected_total{reason="busy"}') == 1


def test_a_client_that_left_gives_its_place_back() -> None:
    gate = Gate()
    engine = MeanEngine(gate)
    with serving(mean_classifier(engine), queue=4, max_batch=1) as running, ThreadPoolExecutor(2) as pool:
        gate.is_open.clear()
        engine.batches.clear()
        held = hold_engine(running, gate, pool)
        for left in range(1, 11):
            with closing(running.connect()) as connection:
                connection.request("POST", "/v1/predict", RED)
                wait_until(lambda: running.service.queue.photos == 3)
            wait_until(lambda: running.service.queue.photos == 2)
            assert running.metric('dla_rejected_total{reason="client_left"}') == left
        gate.is_open.set()
        assert all(future.result() for future in held)
        wait_until(lambda: running.service.queue.photos == 0)
        assert len(engine.batches) == 2


def test_a_photo_that_takes_too_long_is_answered_with_504(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    with serving(mean_classifier(MeanEngine(gate)), timeout=0.3, queue=3) as running:
        gate.is_open.clear()
        for _ in range(3):
            status, _, answer = running.ask("POST", "/v1/predict", RED)
            assert (status, json.loads(answer)["error"]["code"]) == (504, "too_late")
        wait_until(lambda: running.ask("GET", "/v2/health/live")[0] == 503)
        assert "the engine has not answered" in running.ask("GET", "/v2/health/live")[2].decode()
        gate.is_open.set()
        wait_until(lambda: running.ask("GET", "/v2/health/live")[0] == 200)
        assert running.record("/v1/predict", RED)["predictions"]


def test_a_decoder_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    is_free, usual = threading.Event(), served_model.BatchWork.read

    def read(self, name, photo):  # type: ignore[no-untyped-def]
        if photo == b"slow":
            assert is_free.wait(30)
        return usual(self, name, photo)

    monkeypatch.setattr(served_model.BatchWork, "read", read)
    with serving(timeout=0.5, decoders=1) as running:
        for _ in range(2):
            assert running.ask("POST", "/v1/predict", b"slow")[0] == 504
            assert running.record("/v1/predict", RED)["predictions"]
        is_free.set()
        wait_until(lambda: running.service.queue.photos == 0)
        wait_until(lambda: running.service.queue.decoders == 1)
        assert running.record("/v1/predict", RED)["predictions"]


def test_a_batch_that_fails_costs_its_own_answers(caplog: pytest.LogCaptureFixture) -> None:
    def fail(pixels: Array) -> None:
        if pixels[0, 0, 0, 1] == 7:
            raise RuntimeError("out of order")

    with serving(mean_classifier(MeanEngine(fail))) as running:
        status, headers, answer = running.ask("POST", "/v1/predict", colored(0, 7, 0))
        error = json.loads(answer)["error"]
        assert (status, error["code"], error["request_id"]) == (500, "internal", headers["x-request-id"])
        assert "out of order" not in answer.decode()
        assert running.record("/v1/predict", RED)["predictions"]
    assert headers["x-request-id"] in caplog.text
    assert "out of order" in caplog.text


def test_the_loop_answers_while_everything_is_busy() -> None:
    gate = Gate()
    with serving(mean_classifier(MeanEngine(gate)), queue=8) as running, ThreadPoolExecutor(8) as pool:
        gate.is_open.clear()
        waiting = [pool.submit(running.record, "/v1/predict", RED) for _ in range(8)]
        wait_until(lambda: running.service.queue.photos == 8)
        began = time.monotonic()
        with closing(running.connect()) as connection:
            for _ in range(50):
                connection.request("GET", "/v2/health/live")
                assert connection.getresponse().read() == b'{"live":true}'
        assert time.monotonic() - began < 10  # they do not wait for photos
        gate.is_open.set()
        assert all(future.result() for future in waiting)


def test_photos_stay_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Forms above a megabyte would be written to the folder for temporary files."""
    import tempfile

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a photo was written to the disk")

    for name in ("NamedTemporaryFile", "TemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, refuse)
    large = RED + bytes(5_000_000)
    head = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    with serving() as running:
        headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
        status, _, answer = running.ask("POST", "/v1/predict", head + large + b"\r\n--xyz--\r\n", headers)
        assert (status, len(json.loads(answer))) == (200, 1)
