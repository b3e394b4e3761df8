"""The same `dla.load()` behind another server, with one worker; `benchmarks/serve.py` runs it.

    python benchmarks/serve_peers.py fastapi|litserve|bentoml

It prints the port, and answers POST /v1/predict with the five best classes.
"""

import socket
import sys

import dla


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


def litserve(port: int) -> None:
    import litserve
    from fastapi import Request

    class Api(litserve.LitAPI):
        def setup(self, device: str) -> None:
            self.classifier = dla.load()

        async def decode_request(self, request: Request) -> bytes:
            return await request.body()

        def predict(self, data: bytes) -> object:
            return self.classifier.predict(data)

        def encode_response(self, output: object) -> dict:
            return output.to_dict()

    server = litserve.LitServer(Api(api_path="/v1/predict"), accelerator="cpu", workers_per_device=1)
    print(port, flush=True)
    server.run(port=port, generate_client_file=False, log_level="warning")


def bentoml(port: int) -> None:
    """BentoML is started by its own command; this file has the service."""
    import os

    print(port, flush=True)
    os.execlp("bentoml", "bentoml", "serve", "serve_peers:Bento", "--port", str(port), "--working-dir",
              os.path.dirname(os.path.abspath(__file__)))  # fmt: skip


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}[sys.argv[1]](free_port())
