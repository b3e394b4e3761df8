"""The same `dla.load()` behind another server, with one worker; `benchmarks/serve.py` runs it.

    python benchmarks/serve_peers.py fastapi|litserve|bentoml

It prints the port, and answers POST /v1/predict with the five best classes.
"""

import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import dla

with suppress(ImportError):
    from bentoml.validators import ContentType


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def fastapi(port: int) -> None:
    import uvicorn
    from fastapi import FastAPI, Request

    app, classifier = FastAPI(), dla.load()
    classifier.predict(dla.__path__[0] + "/shipped/photos/coffee.jpg")

    @app.post("/v1/predict")
    async def predict(request: Request) -> dict:
        from starlette.concurrency import run_in_threadpool

        data = await request.body()
        return await run_in_threadpool(lambda: classifier.predict(data).to_dict())

    print(port, flush=True)
    uvicorn.run(app, port=port, log_level="warning")


with suppress(ImportError):
    import litserve as ls

    class Lit(ls.LitAPI):
        def setup(self, device: str) -> None:
            self.classifier = dla.load()

        def decode_request(self, request):  # type: ignore[no-untyped-def]  # a form: the type would make it JSON
            return request["image"].file.read()

        def predict(self, data: bytes) -> dict:
            return self.classifier.predict(data).to_dict()

        def encode_response(self, output: dict) -> dict:
            return output


def litserve(port: int) -> None:
    server = ls.LitServer(Lit(api_path="/v1/predict"), accelerator="cpu", workers_per_device=1)
    print(port, flush=True)
    server.run(port=port, generate_client_file=False, log_level="warning")


with suppress(ImportError):
    import bentoml

    @bentoml.service(workers=1, traffic={"timeout": 60})
    class Bento:
        def __init__(self) -> None:
            self.classifier = dla.load()

        @bentoml.api(route="/v1/predict")
        def predict(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> dict:
            return self.classifier.predict(image.read_bytes()).to_dict()


def bento(port: int) -> None:
    """BentoML imports this file by its own command."""
    print(port, flush=True)
    here = os.path.dirname(os.path.abspath(__file__))
    os.execlp("bentoml", "bentoml", "serve", "serve_peers:Bento", "--port", str(port), "--working-dir", here)


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bento}[sys.argv[1]](free_port())
