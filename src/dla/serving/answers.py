"""What the service answers: JSON, and errors with a code."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

ERROR_SCHEMA = "dla.error/1"

ERRORS = {
    "bad_request": (400, "the request is no HTTP, or an option is unknown or out of range"),
    "no_photo": (400, "the body is empty, or the form has no file in `image`"),
    "bad_form": (400, "the form is damaged, or has too many parts"),
    "bad_tensor": (400, "names, shapes or sizes of an inference request do not fit"),
    "no_token": (401, "the service wants `Authorization: Bearer TOKEN`"),
    "unknown_host": (403, "the name in `Host` is not allowed; see `--allow-host`"),
    "origin": (403, "a page of another origin sent the request; see `--cors`"),
    "not_found": (404, "there is no such address, or the model has another task"),
    "method": (405, "the address takes another method; `Allow` has it"),
    "slow_request": (408, "the request did not come within `--receive-timeout`"),
    "body_too_large": (413, "the body has more than `--max-body`; it was not read"),
    "media_type": (415, "the body is of a kind that the address does not take, or compressed"),
    "long_header": (431, "the headers have more than 64 KiB"),
    "internal": (500, "a mistake in the service; its log has the `request_id`"),
    "busy": (503, "the queue is full; `Retry-After` says when to try again"),
    "loading": (503, "the model is not loaded yet"),
    "draining": (503, "the service ends"),
    "too_late": (504, "the photo was not answered within `--timeout`"),
}


class RequestError(Exception):
    """A request that is not answered: its status, code, and a sentence for people."""

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)

    @property
    def phrase(self) -> str:
        """The words beside the status."""
        return HTTPStatus(self.status).phrase


def error_body(refusal: RequestError, request_id: str | None = None) -> bytes:
    """Return the JSON of a refusal."""
    error = {"code": refusal.code, "message": refusal.message}
    if request_id is not None:
        error["request_id"] = request_id
    return to_json({"schema": ERROR_SCHEMA, "error": error})


def to_json(value: Any) -> bytes:
    """Return JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_answer(value: Any, status: int = 200) -> Response:
    """Return an answer of JSON."""
    return Response(to_json(value), status, media_type="application/json")
