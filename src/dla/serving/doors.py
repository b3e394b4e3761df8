"""The addresses below /v1/: photos in, records out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from dla.errors import UsageError
from dla.inference.classifier import Classifier
from dla.inference.pipeline import PhotoInput
from dla.models.registry import PRE_LOGITS
from dla.options import PredictOptions
from dla.serving.answers import RequestError, json_answer
from dla.serving.forms import MOST_PARTS, form_photos
from dla.serving.queue import Job, Work
from dla.serving.served_model import (
    JSON,
    NPY,
    PNG,
    Answer,
    PhotoWork,
    ServedModel,
    features_answer,
    prediction_answer,
    record_answer,
)
from dla.serving.service import Service
from dla.serving.trace import TRACE, Trace, read_body, read_query

PARSED_ON_LOOP = 256 * 1024  # bytes; larger forms and JSON are parsed in a thread
FORM = "multipart/form-data"
NODES = "nodes"  # in place of a node's name: all of them
# What curl sends without being told is taken too; a file that is no photo is told from its bytes.
PHOTO_TYPES = ("", "application/octet-stream", "application/x-www-form-urlencoded")


class Doors:
    """The addresses below /v1/."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def predict(self, request: Request) -> Response:
        """Classify a photo, or the photos of a form."""
        model, trace = self._enter(request, "predict")
        options = read_query(request, "topk")
        topk = self.service.topk
        if options:
            topk = PredictOptions(number(options, "topk", topk)).topk  # checks the range
        photos = await self.photos(request, trace)
        model = self.service.model()  # a reload may have come while the body did
        assert isinstance(model.network, Classifier)
        finish = partial(prediction_answer, model.network, topk)
        answers = await ask(self.service, trace, model.prediction, photos, finish)
        if trace.media_type == FORM:
            return Response(b"[" + b",".join(answer.body for answer in answers) + b"]", media_type=JSON)
        return answer_of(answers[0])

    async def features(self, request: Request) -> Response:
        """Compute the features of a photo at a node."""
        model, trace = self._enter(request, "features")
        at = read_query(request, "at").get("at", PRE_LOGITS)
        model.features(at)  # checks the name before the body is read
        photo = await self.photo(request, trace)
        finish = partial(features_answer, at, NPY if trace.accepts(NPY) else JSON)
        return await self._answer(trace, self.service.model().features(at), photo, finish)

    async def explain(self, request: Request) -> Response:
        """Show which places of a photo speak for a class, or with `at=nodes` how active each node is there."""
        model, trace = self._enter(request, "explain")
        options = read_query(request, "class", "against", "at")
        shows_nodes = options.get("at") == NODES
        if shows_nodes and len(options) > 1:
            raise RequestError(400, "bad_request", f"at={NODES} is about no class. Leave out class and against")
        named = {"class_id" if name == "class" else name: value for name, value in options.items()}
        network: Any = model.network
        if not shows_nodes:
            network.explain((), **named)  # checks the names before the body is read
        photo = await self.photo(request, trace)
        model = self.service.model()
        network = model.network
        ask = network.activations if shows_nodes else partial(network.explain, **named)
        finish = partial(record_answer, PNG if trace.accepts(PNG) and not shows_nodes else JSON)
        return await self._answer(trace, PhotoWork(partial(ask, **model.reading)), photo, finish)

    async def segment(self, request: Request) -> Response:
        """Assign a class to each pixel of a photo."""
        return await self._dense(request, "segment", "size", "tile")

    async def edges(self, request: Request) -> Response:
        """Find the boundaries in a photo."""
        return await self._dense(request, "edges", "size", "tile", "threshold")

    async def _dense(self, request: Request, door: str, *known: str) -> Response:
        model, trace = self._enter(request, door)
        options = read_query(request, *known)
        if options.get("size", "").isdecimal():
            options["size"] = number(options, "size", 0)
        if "tile" in options:
            options["tile"] = number(options, "tile", 0)
        if "threshold" in options:
            options["threshold"] = fraction(options["threshold"])
        network: Any = model.network
        network((), **options)  # checks the options before the body is read
        photo = await self.photo(request, trace)
        work = PhotoWork(partial(self.service.model().ask_dense, **options))
        return await self._answer(trace, work, photo, self._record_of(trace))

    async def model(self, request: Request) -> Response:
        """Answer what is known about the model, and the addresses that it has."""
        read_query(request)
        model = self.service.model()
        return json_answer({**model.info, "model": self.service.name, "doors": model.doors})

    def _enter(self, request: Request, door: str) -> tuple[ServedModel, Trace]:
        """Return the model and the request.

        Raises:
            RequestError: the model is not loaded, or has no such door.
        """
        trace: Trace = request.scope[TRACE]
        model = self.service.model()
        if door not in model.doors:
            there = ", ".join(f"/v1/{name}" for name in model.doors)
            raise RequestError(404, "not_found", f"this model has the task {model.task} and answers {there}")
        return model, trace

    async def photos(self, request: Request, trace: Trace) -> list[tuple[str, PhotoInput]]:
        """Return the name and bytes of the photo in the body, or of each in the form."""
        kind = trace.media_type
        if kind != FORM and kind not in PHOTO_TYPES and not kind.startswith("image/"):
            hint = "Send a photo's bytes as image/jpeg or such, or a form with the field image"
            raise RequestError(415, "media_type", f"the body is {kind[:60]}. {hint}")
        body = await read_body(request, self.service.queue, self.service.options.max_body * 2**20)
        if not body:
            raise RequestError(400, "no_photo", "the body is empty. Send a photo's bytes: --data-binary @cat.jpg")
        if kind != FORM:
            return [("input 0", body)]
        parse = partial(form_photos, body, trace.header(b"content-type"), min(MOST_PARTS, self.service.options.queue))
        return parse() if len(body) <= PARSED_ON_LOOP else await self.service.queue.off_loop(parse)

    async def photo(self, request: Request, trace: Trace) -> tuple[str, PhotoInput]:
        """Return the only photo of a request."""
        photos = await self.photos(request, trace)
        if len(photos) > 1:
            raise RequestError(400, "bad_form", f"the form has {len(photos)} photos. This address takes one")
        return "input 0", photos[0][1]

    def _record_of(self, trace: Trace) -> Callable[..., Answer]:
        return partial(record_answer, PNG if trace.accepts(PNG) else JSON)

    async def _answer(
        self, trace: Trace, work: Work, photo: tuple[str, PhotoInput], finish: Callable[..., Any]
    ) -> Response:
        (answer,) = await ask(self.service, trace, work, [photo], finish)
        return answer_of(answer)


async def ask(
    service: Service,
    trace: Trace,
    work: Work,
    photos: Sequence[tuple[str, PhotoInput]],
    finish: Callable[..., Any],
) -> list[Any]:
    """Queue photos and return what `finish` makes of each, in order.

    Raises:
        RequestError: there is no place, or it took too long.
    """
    create_future = service.queue.loop.create_future
    jobs = [Job(work, name, photo, finish, create_future()) for name, photo in photos]
    service.queue.submit(jobs)
    trace.jobs = jobs
    if len(jobs) == 1:
        answers = [await jobs[0].answer]
    else:
        answers = await asyncio.gather(*(job.answer for job in jobs), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                service.queue.drop(jobs)
                raise answer
    for answer in answers:
        service.counters.photos[answer.error.code if answer.error is not None else "ok"] += 1
    return answers


def answer_of(answer: Answer) -> Response:
    """Return the answer about one photo: 422 if it cannot be read."""
    return Response(answer.body, 200 if answer.error is None else 422, media_type=answer.media_type)


def number(options: dict[str, Any], name: str, default: int) -> int:
    """Return a whole number of the address.

    Raises:
        UsageError: it is none.
    """
    text = options.get(name)
    if text is None:
        return default
    if not (text.isdecimal() and text.isascii() and len(text) < 10):
        raise UsageError(f"{name} is {text[:40]!r}. Allowed: a whole number")
    return int(text)


def fraction(text: str) -> float:
    """Return a number of the address.

    Raises:
        UsageError: it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"threshold is {text[:40]!r}. Allowed: a number above 0, to 1") from None
