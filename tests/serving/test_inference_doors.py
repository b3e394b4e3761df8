"""The Open Inference Protocol, asked by the recorded bytes of clients, and by requests that do not fit."""

from __future__ import annotations

import base64
import json
import socket
import struct
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dla.inference.classifier import Classifier
from dla.serving.protocol import parse_infer
from support.served import CLASSES, Running, colored, mean_classifier, serving

RED = colored(200, 10, 10)
RECORDED = sorted((Path(__file__).parents[1] / "reference" / "inference").glob("*.http"))
INFER = "/v2/models/mean/infer"


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return mean_classifier()


@pytest.fixture(scope="module")
def service(classifier: Classifier) -> Iterator[Running]:
    with serving(classifier, queue=4) as running:
        yield running


def replayed(service: Running, request: bytes) -> tuple[int, dict[str, Any], bytes]:
    """The status, the JSON and the binary data of the answer."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(request)
        answer = HTTPResponse(connection)
        answer.begin()
        body = answer.read()
        head = int(answer.headers.get("Inference-Header-Content-Length", len(body)))
        return answer.status, json.loads(body[:head]), body[head:]


def test_the_recorded_requests_are_there() -> None:
    assert len(RECORDED) == 9


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_client_gets_the_probabilities(path: Path, service: Running, classifier: Classifier) -> None:
    request = path.read_bytes()
    status, root, binary = replayed(service, request)
    (output,) = root["outputs"]
    assert (status, root["model_name"], output["name"]) == (200, "mean", "probabilities")
    assert root.get("id") == ("seven" if b'"id":"seven"' in request else None)
    photo = np.full((4, 4, 3), (200, 10, 10), np.uint8)
    expected = classifier.predict(photo, topk=CLASSES).classes
    if output["datatype"] == "BYTES":
        texts, at = [], 0
        while at < len(binary):
            (size,) = struct.unpack_from("<I", binary, at)
            texts.append(binary[at + 4 : at + 4 + size].decode())
            at += 4 + size
        assert output["shape"] == [1, 3]
        assert texts == [f"{c.probability:f}:{c.index}:{c.label}" for c in expected[:3]]
        return
    size = output.get("parameters", {}).get("binary_data_size")
    assert len(binary) == (size or 0)
    values = np.frombuffer(binary, "<f4") if size else np.array(output["data"], np.float32)
    rows = values.reshape(output["shape"])
    by_index = [c.probability for c in sorted(expected, key=lambda c: c.index)]
    assert rows.shape == (2 if b'"shape":[2' in request else 1, CLASSES)
    assert rows == pytest.approx(np.tile(by_index, (len(rows), 1)), abs=1e-6)


def tensor(**changes: Any) -> dict[str, Any]:
    data = [base64.b64encode(RED).decode()]
    return {"name": "image", "shape": [1], "datatype": "BYTES", "data": data, **changes}


@pytest.mark.parametrize(
    ("root", "binary", "words"),
    [
        ({}, b"", "the inputs are none"),
        ({"inputs": [tensor(), tensor()]}, b"", "the inputs are image, image"),
        ({"inputs": [tensor(name="photo")]}, b"", "the inputs are photo"),
        ({"inputs": "image"}, b"", "no list of objects"),
        ({"inputs": [tensor(shape=[-1])]}, b"", "numbers above 0"),
        ({"inputs": [tensor(shape=[True])]}, b"", "numbers above 0"),
        ({"inputs": [tensor(shape=[1, 3])]}, b"", "BYTES [N]"),
        ({"inputs": [tensor(datatype="UINT8")]}, b"", "BYTES [N]"),
        ({"inputs": [tensor(shape=[5], data=[""] * 5)]}, b"", "5 photos in one request. Allowed: 4"),
        ({"inputs": [tensor(shape=[2])]}, b"", "has 1 photos, and its shape says 2"),
        ({"inputs": [tensor(data=["not base64!"])]}, b"", "standard base64"),
        ({"inputs": [tensor(data=[1])]}, b"", "no list of texts"),
        ({"inputs": [tensor()]}, b"more", "no input has binary_data_size"),
        ({"inputs": [tensor(parameters={"binary_data_size": 3})]}, b"more", "binary_data_size is 3"),
        ({"inputs": [tensor(parameters={"binary_data_size": 4})]}, b"\xff\xff\xff\xff", "do not hold 1 photos"),
        ({"inputs": [tensor(parameters={"binary_data_size": 2})]}, b"\0\0", "end within a length"),
        ({"inputs": [tensor(parameters=[1])]}, b"", "parameters are no object"),
        ({"inputs": [tensor(name="pixels", shape=[1, 2, 2, 4], datatype="UINT8")]}, b"", "UINT8 [N, H, W, 3]"),
        ({"inputs": [tensor(name="pixels", shape=[1, 1, 1, 3], datatype="UINT8", data=[1, 2, 300])]}, b"", "0 to 255"),
        ({"inputs": [tensor(name="pixels", shape=[1, 1, 1, 3], datatype="UINT8", data=[1, [2]])]}, b"", "3 whole"),
        ({"inputs": [tensor()], "outputs": [{"name": "logits"}]}, b"", "the outputs are logits"),
        ({"inputs": [tensor()], "outputs": [{"name": "probabilities", "parameters": {"classification": -1}}]}, b"",
         "classification is -1"),
        ({"inputs": [tensor()], "id": 7}, b"", "id is no text"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(service: Running, root: dict[str, Any], binary: bytes, words: str) -> None:
    head = json.dumps(root).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, _, answer = service.ask("POST", INFER, head + binary, headers)
    assert (status, list(json.loads(answer))) == (400, ["error"])
    assert words in json.loads(answer)["error"]


@pytest.mark.parametrize("length", ["-1", "1e3", "9999999", "x" * 100])
def test_a_wrong_length_of_the_json_is_told(service: Running, length: str) -> None:
    status, _, answer = service.ask("POST", INFER, b"{}", {"Inference-Header-Content-Length": length})
    assert status == 400
    assert "the body has 2 bytes" in json.loads(answer)["error"]


def test_large_pixels_as_json_are_parsed_beside_the_loop_up_to_a_limit(service: Running) -> None:
    pixels = tensor(name="pixels", shape=[1, 300, 300, 3], datatype="UINT8", data=[7] * 270_000)
    status, root, _ = replayed(service, _request({"inputs": [pixels]}))
    assert (status, root["outputs"][0]["shape"]) == (200, [1, CLASSES])
    status, root, _ = replayed(service, _request({"inputs": [tensor(data=["A" * 9_000_000])]}))
    assert (status, "Send binary data" in root["error"]) == (413, True)


def _request(root: dict[str, Any]) -> bytes:
    body = json.dumps(root).encode()
    return f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_photo_that_cannot_be_read_is_named(service: Running) -> None:
    data = [base64.b64encode(photo).decode() for photo in (RED, b"none")]
    status, root, _ = replayed(service, _request({"inputs": [tensor(shape=[2], data=data)]}))
    assert (status, root["error"].startswith("image 1: this is not a photo")) == (422, True)


def test_clients_find_the_server_and_the_model(service: Running) -> None:
    def get(path: str) -> tuple[int, Any]:
        status, _, answer = service.ask("GET", path)
        return status, json.loads(answer)

    assert get("/v2")[1]["extensions"] == ["binary_tensor_data", "classification"]
    assert get("/v2/health/live") == (200, {"live": True})
    assert get("/v2/health/ready") == (200, {"ready": True})
    for path in ("/v2/models/mean", "/v2/models/mean/versions/1"):
        assert get(path)[1]["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, CLASSES]}]
        assert get(f"{path}/ready") == (200, {"name": "mean", "ready": True})
    for path in ("/v2/models/other", "/v2/models/mean/versions/2", "/v2/models/mean/config"):
        status, root = get(path)
        assert (status, list(root)) == (404, ["error"])


def test_the_json_has_a_limit() -> None:
    with pytest.raises(Exception, match="more than 0 MiB"):
        parse_infer(b'{"inputs": []}', None, 4, 10)
