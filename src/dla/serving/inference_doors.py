"""The addresses below /v2: the Open Inference Protocol."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from dla.errors import InputError
from dla.inference.classifier import Classifier
from dla.inference.pipeline import PreparedInput
from dla.serving import protocol
from dla.serving.answers import RequestError, json_answer
from dla.serving.doors import PARSED_ON_LOOP, ask
from dla.serving.service import Service
from dla.serving.trace import TRACE, read_body, read_query
from dla.types import Array
from dla.version import __version__

MOST_JSON = 8 * 2**20


@dataclass(frozen=True, slots=True)
class _Row:
    """The probabilities of one photo, or why there are none."""

    error: InputError | None
    probabilities_K: Array


class InferenceDoors:
    """The addresses below /v2."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def server(self, request: Request) -> Response:
        """Answer what the server is."""
        read_query(request)
        return json_answer({"name": "dla", "version": __version__, "extensions": protocol.EXTENSIONS})

    async def metadata(self, request: Request) -> Response:
        """Answer what the model takes and gives."""
        self._check_name(request)
        return json_answer(protocol.metadata(self.service.name, self._classifier().config.num_classes))

    async def model_ready(self, request: Request) -> Response:
        """Answer whether the model can be asked."""
        self._check_name(request)
        ready = self.service.phase == "ready"
        return json_answer({"name": self.service.name, "ready": ready}, 200 if ready else 503)

    async def infer(self, request: Request) -> Response:
        """Classify photos, encoded or as pixels."""
        self._check_name(request)
        self._classifier()
        trace, options = request.scope[TRACE], self.service.options
        body = await read_body(request, self.service.queue, options.max_body * 2**20)
        length = trace.header(protocol.LENGTH_HEADER.encode()) or None
        parse = partial(protocol.parse_infer, body, length, options.queue, MOST_JSON)
        on_loop = int(length) if length is not None and length.isdecimal() else len(body)
        asked = parse() if on_loop <= PARSED_ON_LOOP else await self.service.queue.off_loop(parse)
        network = self._classifier()
        photos = [(f"image {n}", photo) for n, photo in enumerate(asked.photos)]
        rows = await ask(self.service, trace, self.service.model().prediction, photos, _row)
        for row in rows:
            if row.error is not None:
                raise RequestError(422, row.error.code, row.error.message)
        best = [network.best_classes(row.probabilities_K, asked.classification or 1) for row in rows]
        rows_NK = np.stack([row.probabilities_K for row in rows])
        answer, head = protocol.infer_answer(self.service.name, asked, rows_NK, best)
        if head is None:
            return Response(answer, media_type="application/json")
        return Response(answer, headers={protocol.LENGTH_HEADER: str(head)}, media_type="application/octet-stream")

    def _check_name(self, request: Request) -> None:
        read_query(request)
        name, version = request.path_params["name"], request.path_params.get("version", protocol.VERSION)
        if name != self.service.name or version != protocol.VERSION:
            raise RequestError(404, "not_found", f'no model is called "{name[:80]}" version {version[:20]} here. '
                          f'There is "{self.service.name}" version {protocol.VERSION}')  # fmt: skip

    def _classifier(self) -> Classifier:
        model = self.service.model()
        if "predict" not in model.doors or not isinstance(model.network, Classifier):
            raise RequestError(
                404, "not_found", f"this protocol is for classifiers; the model has the task {model.task}"
            )
        return model.network


def _row(p: PreparedInput, row: Array | None) -> _Row:
    return _Row(p.error, np.empty(0, np.float32) if row is None else row)
