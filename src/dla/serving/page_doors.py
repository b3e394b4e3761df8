"""The page for people: its file, the sample photos, and the drawing of the network. Their addresses are its own."""

from __future__ import annotations

import secrets
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dla.serving.answers import RequestError
from dla.serving.service import Service
from dla.serving.trace import read_query
from dla.weights.model_folder import ModelConfig

_CSP = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAMPLES = ("chelsea", "coffee", "rocket", "astronaut", "camera", "hubble")  # of the package's photos


class PageDoors:
    """The addresses that the page itself has."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def routes(self) -> list[Route]:
        """Return the addresses; those below /page/ are for the page alone, so openapi.json has none of them."""
        return [
            Route("/", self.page),
            Route("/page/samples/{name}", self.sample, include_in_schema=False),
            Route("/page/drawing.svg", self.drawing, include_in_schema=False),
        ]

    async def page(self, request: Request) -> Response:
        """Answer the page; only its own script and style may run."""
        nonce = secrets.token_urlsafe(16)
        headers = {
            "content-security-policy": _CSP.format(nonce=nonce),
            "cache-control": "no-store",
            "referrer-policy": "no-referrer",
        }
        html = files("dla.serving").joinpath("app.html").read_text(encoding="utf-8")
        html = html.replace("{nonce}", nonce).replace("{samples}", " ".join(SAMPLES))
        return Response(html, headers=headers, media_type="text/html")

    async def sample(self, request: Request) -> Response:
        """Answer a sample photo."""
        name = request.path_params["name"]
        if name not in SAMPLES:
            raise RequestError(404, "not_found", f"there is no sample {name[:60]}. There are {', '.join(SAMPLES)}")
        photo = files("dla").joinpath("shipped", "photos", f"{name}.jpg").read_bytes()
        return Response(photo, headers={"cache-control": "max-age=3600"}, media_type="image/jpeg")

    async def drawing(self, request: Request) -> Response:
        """Answer the drawing of a classifier."""
        read_query(request)
        model = self.service.model()
        if "explain" not in model.doors:
            raise RequestError(404, "not_found", f"a model of the task {model.task} is not drawn here")
        svg = await self.service.queue.off_loop(lambda: network_svg(model.config, self.service.name))
        return Response(svg, media_type="image/svg+xml")


def network_svg(config: ModelConfig, title: str) -> str:
    """Return the drawing of a classifier as SVG."""
    import torch  # the service needs it for nothing else before a map is asked for

    from dla.drawing.layout import lay_out
    from dla.drawing.network import describe
    from dla.drawing.shapes import to_svg
    from dla.models.build import build

    with torch.device("meta"):
        net = build(config.architecture, num_classes=config.num_classes, **config.model_args)
    net.default_cfg = {**net.default_cfg, **config.pretrained_cfg}  # the size at which its work is counted
    return to_svg(lay_out(describe(net, title)))
