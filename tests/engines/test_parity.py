"""Every engine against PyTorch, on the same pixels: every network of the table, every option, sizes of every kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dla.engines.base import Engine
from dla.engines.graph import Network, OpGraph
from dla.engines.onnx import OnnxEngine
from dla.engines.openvino import OpenvinoEngine
from dla.engines.torch import TorchEngine
from dla.engines.tracing import trace_ops
from dla.errors import UnknownNameError
from dla.images.preprocessing import Preprocessing
from dla.models.build import build
from dla.models.dla import DLA
from dla.models.nodes import nodes
from dla.models.registry import TABLE
from dla.types import Array
from support.photos import crops
from support.tiny import tiny

pytestmark = pytest.mark.slow

SCALE_SHIFT = Preprocessing().scale_shift()
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((block, {"output_stride": stride}) for block in ("basic", "bottleneck", "bottle2neck") for stride in (8, 16, 32)),
    *(("basic", {"global_pool": pool}) for pool in ("max", "avgmax", "catavgmax", "fast")),
    ("bottleneck_x", {"cardinality": 4, "base_width": 32}),
    ("basic", {"shortcut_root": True}),
]

SIZES = (1, 1), (7, 90), (33, 64)


@pytest.fixture(scope="module", autouse=True)
def _no_cache() -> Iterator[None]:
    """No network comes a second time, and writing hundreds of megabytes takes longer than computing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLA_CACHE", "/dev/null")
        yield


def lively(model: DLA, *, damped: bool = False) -> DLA:
    """In evaluation mode, with statistics of photos and scores of about -1 to 1, so that all of it matters.

    `damped`: no layer amplifies the rounding of those before it.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            torch.nn.init.uniform_(module.weight, 0.4, 0.8)
            torch.nn.init.normal_(module.bias, 0, 0.2)
    scale, shift = (torch.from_numpy(a)[:, None, None] for a in SCALE_SHIFT)
    x = torch.from_numpy(real_pixels(64, 64, 8)).permute(0, 3, 1, 2) * scale + shift
    with torch.no_grad():
        model.train()(x)
        for module in model.eval().modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_var *= 1 + damped
        if isinstance(model.fc, torch.nn.Conv2d) and model.global_pool.pool_type:
            features = model.global_pool(model.forward_features(x))
            model.fc.weight /= 2 * model.fc(features).std(0).mean()
            model.fc.bias = torch.nn.Parameter(model.fc.bias - model.fc(features).mean(0).flatten())
    return model


def real_pixels(height: int, width: int, count: int) -> Array:
    return np.stack([np.asarray(p.resize((width, height), Image.Resampling.BILINEAR)) for p in crops(count)])


def network_of(model: DLA) -> Network:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    digest = hashlib.sha256(b"".join(array.tobytes() for array in state.values())).hexdigest()
    return Network(trace_ops(model), state, *SCALE_SHIFT, digest)


def others(model: DLA) -> Iterator[Engine]:
    network = network_of(model)
    yield OpenvinoEngine(network, threads=1)
    yield OnnxEngine(network, threads=1)


@pytest.mark.parametrize("name", TABLE)
def test_every_network_of_the_table(name: str) -> None:
    model = lively(build(name, num_classes=7))
    ours = TorchEngine(model, *SCALE_SHIFT, "cpu")
    pixels = real_pixels(65, 47, 3)
    expected = ours.probabilities(pixels)
    assert expected.std(0).max() > 1e-3  # the photos are told apart
    for engine in others(model):
        found = engine.probabilities(pixels)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-4, engine.name
        assert (found.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize(
    ("block", "options", "size"), [(*o, SIZES[(i + i // 3) % 3]) for i, o in enumerate(OPTIONS)], ids=str
)
def test_every_option_at_odd_sizes(block: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    model = lively(tiny(block, **options))
    ours = TorchEngine(model, *SCALE_SHIFT, "cpu")
    engines = list(others(model))
    for count in (1, 3):
        pixels = real_pixels(*size, count)
        expected = ours.probabilities(pixels)
        for engine in engines:
            assert np.abs(engine.probabilities(pixels) - expected).max() < 1e-4, engine.name


def test_batches_of_1_3_and_8_in_turns() -> None:
    model = lively(tiny())
    pixels = real_pixels(64, 64, 8)
    expected = TorchEngine(model, *SCALE_SHIFT, "cpu").probabilities(pixels)
    for engine in others(model):
        for count in (1, 8, 3, 1):
            assert np.abs(engine.probabilities(pixels[:count]) - expected[:count]).max() < 1e-4, engine.name


@pytest.mark.parametrize("block", ["basic", "bottle2neck"])
def test_features_at_every_node(block: str) -> None:
    model = lively(tiny(block, num_classes=0), damped=True)
    pixels = real_pixels(33, 47, 2)
    ours, engines = TorchEngine(model, *SCALE_SHIFT, "cpu"), list(others(model))
    for at in ("level0", "level1", "level5", "pre_logits", *(node.name for node in nodes(model))):
        expected = ours.features_at(at)(pixels)
        for engine in engines:
            found = engine.features_at(at)(pixels)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), (engine.name, at)


def test_a_place_that_is_not_there() -> None:
    model = tiny().eval()
    for engine in (*others(model), TorchEngine(model, *SCALE_SHIFT, "cpu")):
        with pytest.raises(UnknownNameError, match='no node of this network is called "level7".*level5, pre_logits'):
            engine.features_at("level7")


def test_steps_as_text() -> None:
    graph = trace_ops(tiny("bottle2neck", output_stride=8).eval())
    assert OpGraph.from_json(graph.to_json()) == graph
