"""The Open Inference Protocol, version 2, over REST, with Triton's binary data and classification extensions.

Inputs: `image`, BYTES (N,), encoded photos; or `pixels`, UINT8 (N, H, W, 3), decoded ones. Output: `probabilities`,
FP32 (N, K); with the parameter "classification": k, BYTES (N, k) of "probability:index:label".
In JSON, BYTES are standard base64, as the protocol does not say what they are.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dla.errors import DamagedError
from dla.inference.classifier import ClassScore
from dla.serving.answers import RequestError, to_json
from dla.storage.files import parse_object
from dla.types import Array

VERSION = "1"
LENGTH_HEADER = "inference-header-content-length"
IMAGE, PIXELS, PROBABILITIES = "image", "pixels", "probabilities"
EXTENSIONS = ("binary_tensor_data", "classification")


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request to infer: the photos, encoded or as arrays (H, W, 3), and how the answer is wanted."""

    photos: tuple[Any, ...]
    id: str | None = None
    classification: int = 0
    is_binary: bool = False


def bad(message: str) -> RequestError:
    """Return the refusal of a request that does not fit."""
    return RequestError(400, "bad_tensor", message)


def metadata(name: str, classes: int) -> dict[str, Any]:
    """Return what the model takes and gives."""
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "dla",
        "inputs": [
            {"name": IMAGE, "datatype": "BYTES", "shape": [-1]},
            {"name": PIXELS, "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        ],
        "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, classes]}],
    }


def parse_infer(body: bytes, header_length: str | None, most_photos: int, most_json: int) -> InferRequest:
    """Return what an inference request asks.

    Args:
        body: the body: JSON, then the bytes of the binary inputs.
        header_length: the bytes of the JSON, if it is not all of the body.
        most_photos: the largest N.
        most_json: the most bytes of JSON.

    Raises:
        RequestError: the request does not fit the model.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isdecimal() and len(header_length) < 12 and int(header_length) <= length):
            raise bad(f"Inference-Header-Content-Length is {header_length[:20]!r}, and the body has {length} bytes")
        length = int(header_length)
    if length > most_json:
        raise RequestError(
            413, "body_too_large", f"the JSON has more than {most_json // 2**20} MiB. Send binary data instead"
        )
    try:
        root = parse_object(body[:length], "the request")
    except DamagedError as error:
        raise bad(str(error)) from None
    photos = _input(_list_of(root, "inputs"), memoryview(body)[length:], most_photos)
    classification, binary = _output(root)
    id_ = root.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise bad("id is no text")
    return InferRequest(photos, id_, classification, binary)


def _list_of(root: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = root.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise bad(f"{key} is no list of objects")
    return value


def _parameters(tensor: Mapping[str, Any]) -> dict[str, Any]:
    value = tensor.get("parameters") or {}
    if not isinstance(value, dict):
        raise bad("parameters are no object")
    return value


def _input(inputs: list[dict[str, Any]], binary: memoryview, most: int) -> tuple[Any, ...]:
    if len(inputs) != 1 or inputs[0].get("name") not in (IMAGE, PIXELS):
        names = ", ".join(str(tensor.get("name"))[:40] for tensor in inputs[:4]) or "none"
        raise bad(f"the inputs are {names}. Allowed: one, {IMAGE} or {PIXELS}")
    tensor = inputs[0]
    shape, kind = tensor.get("shape"), tensor.get("datatype")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        raise bad(f"the shape of {tensor['name']} is {shape!r:.60}. Allowed: numbers above 0")
    if tensor["name"] == IMAGE:
        if kind != "BYTES" or len(shape) not in (1, 2) or math.prod(shape) != shape[0]:
            raise bad(f"{IMAGE} is {kind!r:.20} {shape!r:.60}. Allowed: BYTES [N], encoded photos")
    elif kind != "UINT8" or len(shape) != 4 or shape[3] != 3:
        raise bad(f"{PIXELS} is {kind!r:.20} {shape!r:.60}. Allowed: UINT8 [N, H, W, 3]")
    if shape[0] > most:
        raise bad(f"{shape[0]} photos in one request. Allowed: {most}")
    size = _parameters(tensor).get("binary_data_size")
    if size is None and len(binary):
        raise bad(f"{len(binary)} bytes follow the JSON, and no input has binary_data_size")
    if size is not None and (type(size) is not int or size != len(binary)):
        raise bad(f"binary_data_size is {size!r:.20}, and {len(binary)} bytes follow the JSON")
    if tensor["name"] == PIXELS:
        return _pixels(shape, tensor.get("data"), None if size is None else binary)
    return _byte_strings(shape[0], tensor.get("data"), None if size is None else binary)


def _byte_strings(count: int, data: Any, binary: memoryview | None) -> tuple[bytes, ...]:
    if binary is None:
        if not isinstance(data, list) or not all(isinstance(text, str) for text in data):
            raise bad(f"the data of {IMAGE} is no list of texts in base64. Send binary data, or base64")
        try:
            values = [base64.b64decode(text, validate=True) for text in data]
        except (binascii.Error, ValueError):
            raise bad(f"the data of {IMAGE} is not in standard base64") from None
    else:
        values, at = [], 0
        while at < len(binary):
            if at + 4 > len(binary):
                raise bad(f"the bytes of {IMAGE} end within a length")
            (size,) = struct.unpack_from("<I", binary, at)
            if at + 4 + size > len(binary) or len(values) == count:
                raise bad(f"the bytes of {IMAGE} do not hold {count} photos, each after its length in 4 bytes")
            values.append(bytes(binary[at + 4 : at + 4 + size]))
            at += 4 + size
    if len(values) != count:
        raise bad(f"{IMAGE} has {len(values)} photos, and its shape says {count}")
    return tuple(values)


def _pixels(shape: Sequence[int], data: Any, binary: memoryview | None) -> tuple[Array, ...]:
    if binary is not None:
        if len(binary) != math.prod(shape):
            raise bad(f"{PIXELS} has {len(binary)} bytes, and its shape says {math.prod(shape)}")
        return tuple(np.frombuffer(binary, np.uint8).reshape(shape))
    try:
        values = np.array(data)
    except ValueError:  # lists of several lengths
        values = np.empty(0)
    if values.dtype.kind not in "iu" or values.size != math.prod(shape) or values.min() < 0 or values.max() > 255:
        raise bad(f"the data of {PIXELS} is not {math.prod(shape)} whole numbers from 0 to 255")
    return tuple(values.astype(np.uint8).reshape(shape))


def _output(root: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the number of classes to name, 0 for all probabilities, and whether the answer is binary."""
    outputs = _list_of(root, "outputs")
    binary = _parameters(root).get("binary_data_output", False)
    if not outputs:
        return 0, binary is True
    if len(outputs) != 1 or outputs[0].get("name") != PROBABILITIES:
        names = ", ".join(str(tensor.get("name"))[:40] for tensor in outputs[:4])
        raise bad(f"the outputs are {names}. Allowed: {PROBABILITIES}")
    parameters = _parameters(outputs[0])
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= 100_000:
        raise bad(f"classification is {classes!r:.20}. Allowed: the number of classes to name")
    return classes, parameters.get("binary_data", binary) is True


def infer_answer(
    name: str, request: InferRequest, rows_NK: Array, best: Sequence[Sequence[ClassScore]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the bytes of its JSON if binary data follow.

    Args:
        name: the model's name.
        request: what was asked.
        rows_NK: the probabilities.
        best: of each photo the classes to name, best first; () if all probabilities are asked.
    """
    if request.classification:
        texts = [[f"{c.probability:f}:{c.index}:{c.label}" for c in classes] for classes in best]
        output: dict[str, Any] = {"datatype": "BYTES", "shape": [len(texts), len(texts[0])]}
        data: Any = [text for row in texts for text in row]
        binary = b"".join(struct.pack("<I", len(raw)) + raw for raw in (text.encode() for text in data))
    else:
        output = {"datatype": "FP32", "shape": list(rows_NK.shape)}
        data = None if request.is_binary else rows_NK.ravel().tolist()
        binary = np.ascontiguousarray(rows_NK, "<f4").tobytes() if request.is_binary else b""
    content = {"parameters": {"binary_data_size": len(binary)}} if request.is_binary else {"data": data}
    root: dict[str, Any] = {"model_name": name, "model_version": VERSION}
    if request.id is not None:
        root["id"] = request.id
    head = to_json({**root, "outputs": [{"name": PROBABILITIES, **output, **content}]})
    return (head + binary, len(head)) if request.is_binary else (head, None)


def error_answer(message: str) -> bytes:
    """Return an error as the protocol has it."""
    return json.dumps({"error": message}).encode()
