"""The logits of dense networks by every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dla
from dla.engines import openvino
from dla.engines.graph import Network, OpGraph
from dla.engines.onnx import OnnxEngine
from dla.engines.openvino import OpenvinoEngine
from dla.engines.torch import TorchEngine
from dla.engines.tracing import trace_ops
from dla.images.preprocessing import Preprocessing
from dla.models.dense import Dense
from dla.models.normalize import Normalize
from dla.models.registry import LOGITS
from support.oracle import randomise

SIZES = ((64, 96), (61, 97), (1, 1))


@pytest.mark.parametrize(("ratio", "stride", "up"), [(2, 32, "bilinear"), (8, 8, "bilinear"), (4, 32, "authors")])
def test_logits_are_those_of_pytorch(ratio: int, stride: int, up: str) -> None:
    model = Dense.over(dla.create_model("dla34_half", num_classes=0, output_stride=stride), 5, ratio, up)
    randomise(model)
    model.eval()
    scale_shift = Preprocessing().scale_shift()
    network = Network(trace_ops(model), {k: v.numpy() for k, v in model.state_dict().items()}, *scale_shift, "")
    assert OpGraph.from_json(network.graph.to_json()) == network.graph
    engines = (OpenvinoEngine(network), OnnxEngine(network), TorchEngine(model, *scale_shift, "cpu"))
    for size in SIZES:
        pixels_1HW3 = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
        with torch.no_grad():
            wanted = model(Normalize(*scale_shift)(torch.from_numpy(pixels_1HW3))).numpy()
        for engine in engines:
            found = engine.features_at(LOGITS)(pixels_1HW3)
            assert found.shape == (1, 5, *size)
            assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max(), engine.name


def test_openvino_keeps_the_compiled_networks_of_some_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "MOST_COMPILED", 2)
    model = dla.create_model("dla34_half", task="edges").eval()
    scale_shift = Preprocessing().scale_shift()
    network = Network(trace_ops(model), {k: v.numpy() for k, v in model.state_dict().items()}, *scale_shift, "")
    engine = OpenvinoEngine(network)
    for width in range(20, 24):
        engine.features_at(LOGITS)(np.zeros((1, 16, width, 3), np.uint8))
    assert len(engine.models.get().compiled) == 2
