"""What the addresses answer: the record of `dla predict`, and for everything else a status, a code and a sentence."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from dla.inference.classifier import Classifier
from dla.serving.answers import ERRORS
from support.photos import ROCKET
from support.served import Running, colored, mean_classifier, serving

RED, GREEN = colored(200, 10, 10), colored(10, 200, 10)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return mean_classifier()


@pytest.fixture(scope="module")
def service(classifier: Classifier) -> Iterator[Running]:
    with serving(classifier, max_body=1, max_megapixels=0.5) as running:
        yield running


def form(
    *parts: tuple[str, str | None, bytes], boundary: str = "xyz", end: bool = True
) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a form: (field, file name, bytes) of each part."""
    body = b""
    for field, name, data in parts:
        file = "" if name is None else f'; filename="{name}"'
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"{file}\r\n\r\n'
        body += head.encode() + data + b"\r\n"
    body += f"--{boundary}--\r\n".encode() * end
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def test_the_record_of_a_photo_is_that_of_predict(service: Running, classifier: Classifier) -> None:
    for photo in (RED, ROCKET.read_bytes()[:-5000], b"no photo", ROCKET.read_bytes()):
        status, headers, answer = service.ask("POST", "/v1/predict", photo)
        expected = classifier.predict(photo).to_dict()
        assert json.loads(answer) == expected
        assert status == (422 if "error" in expected else 200)
        assert headers["content-type"] == "application/json"


def test_options_are_in_the_address(service: Running, classifier: Classifier) -> None:
    assert service.record("/v1/predict?topk=2", RED) == classifier.predict(RED, topk=2).to_dict()
    assert len(service.record("/v1/predict?topk=500", RED)["predictions"]) == len(classifier.classes)


def test_a_form_has_a_record_for_each_photo_in_order(service: Running, classifier: Classifier) -> None:
    body, headers = form(("image", "a.png", RED), ("image", "b.png", b"none"), ("image", "", GREEN))
    status, _, answer = service.ask("POST", "/v1/predict", body, headers)
    first, second, third = json.loads(answer)
    assert status == 200
    assert [r["path"] for r in (first, second, third)] == ["a.png", "b.png", "input 2"]
    assert first["predictions"] == classifier.predict(RED).to_dict()["predictions"]
    assert second["error"]["code"] == "not_an_image"
    assert third["predictions"] == classifier.predict(GREEN).to_dict()["predictions"]


BODY, HEAD = form(("image", "a.png", RED))


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (BODY, {"Content-Type": "multipart/form-data"}, "bad_form"),
        (BODY, {"Content-Type": "multipart/form-data; boundary=other"}, "bad_form"),
        (*form(("image", "a.png", RED), end=False), "bad_form"),
        (*form(), "no_photo"),
        (*form(("image", None, RED)), "no_photo"),
        (*form(("photo", "a.png", RED)), "bad_form"),
        (*form(("image", "a.png", RED), ("topk", None, b"3")), "bad_form"),
        (*form(*[("image", "a.png", RED)] * 17), "bad_form"),
        (*form(*[("image", "", b"")] * 5000), "bad_form"),
        (b"--xyz\r\nContent-Type: image/png\r\n\r\nx\r\n--xyz--\r\n", HEAD, "bad_form"),
        (b"--xyz\r\n" + b"A: b\r\n" * 1000 + b"\r\nx\r\n--xyz--\r\n", HEAD, "bad_form"),
        (b"--xyz\r\nA: " + b"b" * 500_000 + b"\r\n\r\nx\r\n--xyz--\r\n", HEAD, "bad_form"),
        (BODY.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: zip\r\n\r\n", 1), HEAD, "bad_form"),
        (b"\r" * 900_000, HEAD, "bad_form"),
        (b"", HEAD, "no_photo"),
        (b"", {}, "no_photo"),
    ],
)
def test_a_wrong_form_is_told(service: Running, body: bytes, headers: dict[str, str], code: str) -> None:
    status, _, answer = service.ask("POST", "/v1/predict", body, headers)
    assert (status, json.loads(answer)["error"]["code"]) == (400, code)
    assert service.record("/v1/predict", RED)["predictions"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "code", "words"),
    [
        ("POST", "/v1/predict?topj=2", {}, "bad_request", "Nearest: topk"),
        ("POST", "/v1/predict?topk=2&topk=3", {}, "bad_request", "twice"),
        ("POST", "/v1/predict?topk=two", {}, "bad_request", "whole number"),
        ("POST", "/v1/predict?topk=0", {}, "bad_request", "Allowed: 1 to"),
        ("POST", "/v1/predict?" + "a=b&" * 40, {}, "bad_request", "32 options"),
        ("POST", "/v1/predict", {"Content-Type": "application/json"}, "media_type", "image/jpeg"),
        ("POST", "/v1/predict", {"Content-Encoding": "gzip"}, "media_type", "compressed"),
        ("POST", "/v1/segment", {}, "not_found", "/v1/predict, /v1/features"),
        ("POST", "/v1/edges", {}, "not_found", "classify"),
        ("GET", "/v1/predict", {}, "method", "POST"),
        ("GET", "/v1/nothing", {}, "not_found", "openapi.json"),
        ("POST", "/v1/predict/", {}, "not_found", "openapi.json"),
    ],
)
def test_what_is_asked_wrongly_is_told(
    service: Running, method: str, path: str, headers: dict[str, str], code: str, words: str
) -> None:
    status, given, answer = service.ask(method, path, RED, headers)
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (ERRORS[code][0], code)
    assert words in error["message"]
    assert error["request_id"] == given["x-request-id"]
    assert given.get("allow") == ("POST" if code == "method" else None)


def test_a_photo_with_too_many_pixels_is_not_decoded(service: Running) -> None:
    wide = io.BytesIO()
    from PIL import Image

    Image.new("1", (1001, 500)).save(wide, "PNG")
    status, _, answer = service.ask("POST", "/v1/predict", wide.getvalue())
    assert (status, json.loads(answer)["error"]["code"]) == (422, "too_large")


def test_features_come_as_json_and_as_a_file_of_numpy(service: Running, classifier: Classifier) -> None:
    expected = classifier.features(RED).values
    assert expected is not None
    record = service.record("/v1/features", RED)
    assert (record["schema"], record["at"], record["shape"]) == ("dla.features/1", "pre_logits", [3])
    assert record["values"] == pytest.approx(expected.tolist())
    _, headers, answer = service.ask("POST", "/v1/features?at=pre_logits", RED, {"Accept": "application/x-npy"})
    assert headers["content-type"] == "application/x-npy"
    assert np.array_equal(np.load(io.BytesIO(answer), allow_pickle=False), expected)
    status, _, answer = service.ask("POST", "/v1/features", b"none")
    assert (status, json.loads(answer)["error"]["code"]) == (422, "not_an_image")


def test_every_answer_has_an_id_and_its_times(service: Running) -> None:
    _, headers, _ = service.ask("POST", "/v1/predict", RED, {"X-Request-Id": "mine.1_2-3"})
    assert headers["x-request-id"] == "mine.1_2-3"
    assert headers["x-content-type-options"] == "nosniff"
    stages = dict(part.split(";dur=") for part in headers["server-timing"].split(", "))
    assert stages.keys() == {"queue", "decode", "engine"}
    assert all(0 <= float(ms) < 20_000 for ms in stages.values())
    _, headers, _ = service.ask("GET", "/v2/health/live", None, {"X-Request-Id": "two\twords"})
    assert len(headers["x-request-id"]) == 16


def test_the_model_is_described(service: Running) -> None:
    status, _, answer = service.ask("GET", "/v1/model")
    assert status == 200
    assert json.loads(answer) == {"schema": "dla.info/1", "model": "mean", "doors": ["predict", "features", "explain"]}


def test_the_metrics_are_prometheus_text(service: Running) -> None:
    service.record("/v1/predict", RED)
    families = {f.name: f for f in text_string_to_metric_families(service.ask("GET", "/metrics")[2].decode())}
    assert families.keys() >= {"dla_requests", "dla_photos", "dla_batch_photos", "dla_seconds", "dla_queue_photos"}
    seconds = {s.labels["stage"]: s.value for s in families["dla_seconds"].samples if s.name == "dla_seconds_count"}
    assert seconds.keys() == {"queue", "decode", "engine", "total"}
    (info,) = families["dla_info"].samples
    assert (info.labels["model"], info.labels["engine"], info.labels["sha256"]) == ("mean", "mean", "0" * 64)
    assert service.metric("dla_body_bytes") == 0
    assert service.metric('dla_requests_total{route="predict",code="200"}') > 0


def test_the_page_may_run_only_its_own_scripts(service: Running) -> None:
    status, headers, answer = service.ask("GET", "/")
    policy = headers["content-security-policy"]
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert status == 200
    assert policy.startswith("default-src 'none';")
    assert f'<script nonce="{nonce}">'.encode() in answer
    assert service.ask("GET", "/")[1]["content-security-policy"] != policy


def test_head_has_no_body(service: Running) -> None:
    status, headers, answer = service.ask("HEAD", "/v2/health/live")
    assert (status, answer) == (200, b"")
    assert int(headers["content-length"]) == len(b'{"live":true}')
