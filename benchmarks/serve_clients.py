"""Ask a running `dla serve` by the clients of Triton and KServe, as they are; `benchmarks/serve.py` runs it.

PYTHON benchmarks/serve_clients.py triton|kserve HOST:PORT PHOTO
"""

import asyncio
import base64
import sys
from pathlib import Path

import numpy as np

MODEL = "tiny200"


def triton(url: str, photo: bytes) -> None:
    import tritonclient.http as http

    client = http.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    for binary_in in (False, True):
        for binary_out in (False, True):
            data = [photo if binary_in else base64.b64encode(photo)] * 2
            image = http.InferInput("image", [2], "BYTES")
            image.set_data_from_numpy(np.array(data, dtype=object), binary_data=binary_in)
            output = http.InferRequestedOutput("probabilities", binary_data=binary_out)
            rows = client.infer(MODEL, [image], outputs=[output]).as_numpy("probabilities")
            assert rows.shape == (2, 200)
            assert np.allclose(rows.sum(1), 1, atol=1e-5)
            output = http.InferRequestedOutput("probabilities", binary_data=binary_out, class_count=3)
            best = client.infer(MODEL, [image], outputs=[output]).as_numpy("probabilities")
            text = best[0][0].decode() if binary_out else best[0][0]
            assert best.shape == (2, 3)
            assert text.split(":")[1] == str(rows[0].argmax())
    pixels = http.InferInput("pixels", [3, 100, 120, 3], "UINT8")
    pixels.set_data_from_numpy(np.zeros((3, 100, 120, 3), np.uint8))
    assert client.infer(MODEL, [pixels]).as_numpy("probabilities").shape == (3, 200)


async def kserve(url: str, photo: bytes) -> None:
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    client, url = InferenceRESTClient(RESTConfig(protocol="v2", retries=0)), f"http://{url}"
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert await client.is_model_ready(url, MODEL)
    image = InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([photo], dtype=object), binary_data=True)
    pixels = InferInput("pixels", [1, 20, 20, 3], "UINT8")
    pixels.set_data_from_numpy(np.full((1, 20, 20, 3), 7, np.uint8), binary_data=False)
    for given in (image, pixels):
        answer = await client.infer(url, InferRequest(model_name=MODEL, infer_inputs=[given]), model_name=MODEL)
        assert answer.outputs[0].as_numpy().shape == (1, 200)


if __name__ == "__main__":
    name, url, path = sys.argv[1:]
    photo = Path(path).read_bytes()
    triton(url, photo) if name == "triton" else asyncio.run(kserve(url, photo))
    print("all combinations answered")
