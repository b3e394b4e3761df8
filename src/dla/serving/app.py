"""The application: checks each request, hands it to its door, and turns what goes wrong into an answer."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Sequence
from importlib.resources import files
from itertools import count
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import Message, Receive, Scope, Send

from dla.errors import DlaError, UsageError
from dla.serving import protocol
from dla.serving.answers import RequestError, error_body, json_answer
from dla.serving.doors import Doors
from dla.serving.http import GONE, MOST_DROPPED
from dla.serving.inference_doors import InferenceDoors
from dla.serving.page_doors import PageDoors
from dla.serving.prometheus import STAGES
from dla.serving.service import Service
from dla.serving.trace import TRACE, UNKNOWN_LENGTH, Trace
from dla.version import __version__

logger = logging.getLogger("dla.serving")
access = logging.getLogger("dla.access")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_START, _NUMBERS = secrets.token_hex(4), count()  # of the ids of this process; a random one each would cost more


class App:
    """The ASGI application of a service."""

    def __init__(self, service: Service) -> None:
        self.service, self.options = service, service.options
        self.router = Router(self._routes(), redirect_slashes=False, default=_no_such_address)
        self.inner: Any = self._answer
        if self.options.cors:
            self.inner = CORSMiddleware(
                self._answer,
                allow_origins=self.options.cors,
                allow_methods=("GET", "POST"),
                allow_headers=("authorization", "content-type", "x-request-id", protocol.LENGTH_HEADER),
                expose_headers=("x-request-id", "server-timing", "retry-after", protocol.LENGTH_HEADER),
            )

    def _routes(self) -> Sequence[BaseRoute]:
        doors, inference = Doors(self.service), InferenceDoors(self.service)
        model = "/v2/models/{name}"
        routes = [
            Route("/v1/predict", doors.predict, methods=["POST"]),
            Route("/v1/features", doors.features, methods=["POST"]),
            Route("/v1/explain", doors.explain, methods=["POST"]),
            Route("/v1/segment", doors.segment, methods=["POST"]),
            Route("/v1/edges", doors.edges, methods=["POST"]),
            Route("/v1/model", doors.model),
            Route("/v2", inference.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/openapi.json", self.openapi),
        ]
        for path in (model, f"{model}/versions/{{version}}"):
            routes += [
                Route(path, inference.metadata),
                Route(f"{path}/ready", inference.model_ready),
                Route(f"{path}/infer", inference.infer, methods=["POST"]),
            ]
        if not self.options.no_metrics:
            routes.append(Route("/metrics", self.metrics))
        if not self.options.no_page:
            routes += PageDoors(self.service).routes()
        return routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        trace = scope[TRACE] = _trace(scope, headers)
        scope["app"], scope[GONE] = self, lambda: self._client_left(trace)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._marks(trace)]
            await send(message)

        try:
            self.service.guard.check_host(trace.path, [value for name, value in scope["headers"] if name == b"host"])
        except RequestError as refusal:
            await self._refuse(scope, receive, send_marked, refusal)
        else:
            await self.inner(scope, receive, send_marked)
        trace.route = getattr(scope.get("endpoint"), "__name__", "other")
        self._end(trace)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace: Trace = scope[TRACE]
        try:
            self.service.guard.check_sender(scope["method"], trace.path, trace.headers)
            await self.router(scope, receive, send)
        except Exception as error:
            if not trace.is_gone and not isinstance(error, ClientDisconnect):
                await self._refuse(scope, receive, send, self._refusal(trace, error))
        except asyncio.CancelledError:
            if not trace.is_gone:  # the service ends
                await self._refuse(scope, receive, send, RequestError(503, "draining", "the service has ended"))

    def _refusal(self, trace: Trace, error: Exception) -> RequestError:
        """Return what is answered for an exception."""
        if isinstance(error, RequestError):
            return error
        if isinstance(error, HTTPException) and error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "")
            return RequestError(405, "method", f"this address takes {allowed}", allow=allowed)
        if isinstance(error, UsageError):
            return RequestError(400, "bad_request", str(error))
        logger.error("request %s: %s", trace.request_id, error, exc_info=None if isinstance(error, DlaError) else error)
        return RequestError(500, "internal", "a mistake in the service; its log has this request_id")

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, refusal: RequestError) -> None:
        trace: Trace = scope[TRACE]
        if trace.status:
            raise refusal  # an answer has begun; uvicorn closes the connection
        if refusal.code in ("unknown_host", "origin", "no_token", "body_too_large"):
            self.service.counters.reject(refusal.code)
        body = error_body(refusal, trace.request_id)
        if trace.path.startswith("/v2"):
            body = protocol.error_answer(refusal.message)
        await Response(body, refusal.status, refusal.headers, "application/json")(scope, receive, send)

    def _client_left(self, trace: Trace) -> None:
        trace.is_gone = True
        self.service.counters.reject("client_left")
        self.service.queue.drop(trace.jobs)

    def _marks(self, trace: Trace) -> list[tuple[bytes, bytes]]:
        """Return the headers of every answer."""
        marks = [(b"x-request-id", trace.request_id.encode()), (b"x-content-type-options", b"nosniff")]
        if trace.jobs:
            timing = ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in trace.seconds().items())
            marks.append((b"server-timing", timing.encode()))
        unread = trace.declared - trace.body_bytes
        if self.service.phase == "draining" or (unread > 0 and (unread > MOST_DROPPED or b"expect" in trace.headers)):
            marks.append((b"connection", b"close"))
        return marks

    def _end(self, trace: Trace) -> None:
        """Count a request that is over."""
        queue, counters = self.service.queue, self.service.counters
        queue.body_bytes -= trace.body_bytes
        counters.requests[trace.route, trace.status] += 1
        total = time.perf_counter() - trace.began
        for job in trace.jobs:
            for stage, seconds in job.seconds().items():
                counters.seconds[stage].add(seconds)
        if trace.jobs:
            counters.seconds[STAGES[-1]].add(total)
        if self.options.access_log == "json":
            parts = {f"{stage}_ms": round(1000 * seconds, 3) for stage, seconds in trace.seconds().items()}
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "request_id": trace.request_id,
                "client": trace.client,
                "method": trace.method,
                "route": trace.route,
                "status": trace.status,
                "photos": len(trace.jobs),
                "bytes": trace.body_bytes,
                "total_ms": round(1000 * total, 3),
            }
            access.info(json.dumps(line | parts))

    async def live(self, request: Request) -> Response:
        """Answer whether the service should go on."""
        reason = self.service.live_reason()
        return json_answer({"live": True}) if reason is None else json_answer({"live": False, "reason": reason}, 503)

    async def ready(self, request: Request) -> Response:
        """Answer whether requests should come."""
        reason = self.service.ready_reason()
        return json_answer({"ready": True}) if reason is None else json_answer({"ready": False, "reason": reason}, 503)

    async def metrics(self, request: Request) -> Response:
        """Answer the counters."""
        return PlainTextResponse(self.service.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """Answer the description of all addresses."""
        return json_answer(openapi(self.service.name, self.options.root_path))


def openapi(name: str, root_path: str = "") -> dict[str, Any]:
    """Return the description of all addresses (OpenAPI 3.1) of a service whose model has this name."""
    root: dict[str, Any] = json.loads(files("dla.serving").joinpath("openapi.json").read_text(encoding="utf-8"))
    root["info"]["version"] = __version__
    root["servers"] = [{"url": root_path or "/"}]
    root["components"]["parameters"]["name"]["schema"]["enum"] = [name]
    return root


def _trace(scope: Scope, headers: dict[bytes, bytes]) -> Trace:
    given = headers.get(b"x-request-id", b"")
    request_id = given.decode("ascii") if _REQUEST_ID.fullmatch(given) else f"{_START}{next(_NUMBERS):08x}"
    length = headers.get(b"content-length", b"0")
    declared = UNKNOWN_LENGTH if b"transfer-encoding" in headers else int(length) if length.isdigit() else 0
    client = (scope.get("client") or ("",))[0]
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    return Trace(request_id, scope["method"], path, headers, client, declared)


async def _no_such_address(scope: Scope, receive: Receive, send: Send) -> None:
    raise RequestError(
        404, "not_found", f"there is nothing at {scope['path'][:100]}. GET /openapi.json lists the addresses"
    )
