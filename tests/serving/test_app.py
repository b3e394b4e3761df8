"""The description of the addresses against the addresses, the access log, and what is written about requests."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from dla.options import ServeOptions
from dla.serving import answers
from dla.serving.app import App, openapi
from dla.serving.service import Service
from support.served import colored, serving

RED = colored(200, 10, 10)
DOCS = Path(__file__).parents[2] / "docs" / "serve.md"


def routes(**options: Any) -> dict[str, set[str]]:
    app = App(Service(ServeOptions(**options), "mean", lambda: None, 5))  # type: ignore[arg-type,return-value]
    known = [r for r in app.router.routes if isinstance(r, Route) and r.include_in_schema]
    return {r.path: (r.methods or set()) - {"HEAD"} for r in known}


def test_the_description_has_exactly_the_addresses() -> None:
    described = {path: {method.upper() for method in item} for path, item in openapi("mean")["paths"].items()}
    assert described == routes()
    names = [operation["operationId"] for item in openapi("mean")["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_every_reference_of_the_description_leads_somewhere() -> None:
    root = openapi("mean")

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [ref for item in value.values() for ref in references(item)]
        return [ref for item in value for ref in references(item)] if isinstance(value, list) else []

    for reference in references(root):
        at = root
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def test_the_page_and_the_metrics_can_be_left_out() -> None:
    assert routes().keys() - routes(no_page=True, no_metrics=True).keys() == {"/", "/metrics"}
    with serving(no_page=True, no_metrics=True) as running:
        assert running.ask("GET", "/")[0] == running.ask("GET", "/metrics")[0] == 404


def test_the_access_log_has_no_names_of_files(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dla.access")
    with serving(access_log="json") as running:
        running.ask("POST", "/v1/predict?topk=3", RED, {"X-Request-Id": "one"})
        running.ask("POST", "/v1/predict", b"secret.jpg")
        running.ask("GET", "/secret.jpg")
    first, second, third = (json.loads(r.message) for r in caplog.records if r.name == "dla.access")
    assert first.keys() == {
        "time", "request_id", "client", "method", "route", "status", "photos", "bytes", "total_ms", "queue_ms",
        "decode_ms", "engine_ms",
    }  # fmt: skip
    assert [first[key] for key in ("request_id", "client", "method", "route")] == [
        "one",
        "127.0.0.1",
        "POST",
        "predict",
    ]
    assert (first["status"], first["photos"], first["bytes"]) == (200, 1, len(RED))
    assert (second["status"], third["status"], third["route"]) == (422, 404, "other")
    assert "secret" not in caplog.text


def test_a_proxys_word_about_the_client_is_taken_only_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dla.access")
    for asked in (False, True):
        with serving(access_log="json", proxy_headers=asked) as running:
            running.ask("GET", "/v2", None, {"X-Forwarded-For": "192.0.2.7"})
    clients = [json.loads(r.message)["client"] for r in caplog.records if r.name == "dla.access"]
    assert clients == ["127.0.0.1", "192.0.2.7"]


def test_every_code_of_an_error_is_documented() -> None:
    page = DOCS.read_text(encoding="utf-8")
    for code, (status, _) in answers.ERRORS.items():
        assert f"| {status} | `{code}` |" in page
