"""Explanations: exact where they say so, captum's where not, and at the right place of the photo."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image

import dla
from dla.engines.base import Engine
from dla.engines.openvino import OpenvinoEngine
from dla.engines.torch import TorchEngine
from dla.images.preprocessing import Preprocessing
from dla.inference.explain import Explainer, class_maps, find_class
from dla.models.normalize import Normalize
from dla.options import ExplainOptions
from dla.types import Array, ClassName
from dla.weights.load import load_model
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import CHELSEA, COFFEE, ROCKET
from support.tiny import in_the_table

PHOTOS = (CHELSEA, COFFEE, ROCKET)


@pytest.fixture(scope="module", params=["openvino", "onnx", "torch"])
def classifier(request: pytest.FixtureRequest) -> dla.Classifier:
    return dla.load(engine=request.param)


@pytest.fixture(scope="module")
def in_openvino() -> dla.Classifier:
    return dla.load(engine="openvino")


@pytest.fixture(scope="module")
def in_torch() -> dla.Classifier:
    return dla.load(engine="torch")


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """The built-in network as PyTorch has it, batch-norm not folded in."""
    return load_model("shipped:tiny200").model.eval()


def seen(classifier: dla.Classifier, photo: Path) -> Array:
    return classifier.preprocessing.pixels(Image.open(photo).convert("RGB"))[None]


def x_of(classifier: dla.Classifier, photo: Path) -> torch.Tensor:
    normalize = Normalize(*classifier.preprocessing.scale_shift())
    x: torch.Tensor = normalize(torch.from_numpy(seen(classifier, photo)))
    return x


def test_the_mean_of_each_map_and_the_bias_are_the_logit(classifier: dla.Classifier, network: torch.nn.Module) -> None:
    _, bias_K = classifier.engine.classifier()
    for photo, explained in zip(PHOTOS, classifier.explain(PHOTOS), strict=True):
        assert explained.method == "cam"
        assert explained.engine == classifier.engine.name
        logits_K = explained.maps.mean((1, 2)) + bias_K
        with torch.no_grad():
            wanted_K = network(x_of(classifier, photo))[0].numpy()
        assert np.abs(logits_K - wanted_K).max() < 1e-5 * max(1, np.abs(wanted_K).max())
        assert explained.map.mean() + explained.bias == pytest.approx(float(wanted_K.max()), rel=1e-5)
        assert explained.target.index == wanted_K.argmax()
        assert np.allclose(explained.maps[explained.target.index], explained.map, atol=1e-5)
        best = classifier.predict(photo).classes[0]
        assert (best.class_id, best.label) == (explained.target.class_id, explained.target.label)
        assert explained.target.probability == pytest.approx(best.probability, abs=1e-6)


def test_in_double_precision_they_are_equal(in_openvino: dla.Classifier, network: torch.nn.Module) -> None:
    double = load_model("shipped:tiny200").model.eval().double()
    with torch.no_grad():
        features = double.forward_features(x_of(in_openvino, CHELSEA).double())
        wanted_K = double.forward_head(features)[0].numpy()
    maps_Khw = class_maps(features[0].numpy(), double.fc.weight.detach().numpy()[:, :, 0, 0])
    assert np.abs(maps_Khw.mean((1, 2)) + double.fc.bias.detach().numpy() - wanted_K).max() < 1e-9


def test_it_is_captums_grad_cam_times_the_places(in_openvino: dla.Classifier, network: torch.nn.Module) -> None:
    explained = in_openvino.explain(COFFEE)
    theirs = LayerGradCam(network, network.level5).attribute(x_of(in_openvino, COFFEE), explained.target.index)
    difference = explained.map - theirs[0, 0].detach().numpy() * explained.map.size
    assert np.abs(difference).max() < 1e-5 * np.abs(explained.map).max()


@pytest.mark.parametrize("against", [None, "n02124075"])
@pytest.mark.parametrize("at", ["level1", "level3.tree1", "level4", "level4.tree1.tree2"])
def test_other_maps_are_captums(
    in_openvino: dla.Classifier, network: torch.nn.Module, at: str, against: str | None
) -> None:
    explained = in_openvino.explain(COFFEE, "espresso", at=at, against=against)
    assert (explained.method, explained.at, explained.bias) == ("grad-cam", at, None)
    chosen = explained.target.index
    other = None if against is None else find_class(in_openvino.classes, against)

    def score(x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = network(x)
        return logits[:, chosen] - (0 if other is None else logits[:, other])

    theirs = LayerGradCam(score, network.get_submodule(at)).attribute(x_of(in_openvino, COFFEE))
    wanted_hw = theirs[0, 0].detach().numpy()
    assert np.abs(explained.map - wanted_hw).max() < 1e-5 * max(1, np.abs(wanted_hw).max())
    assert explained.map.shape == wanted_hw.shape


@pytest.mark.parametrize("pool", ["max", "avgmax", "catavgmax", "fastavg"])
def test_other_poolings_are_said_to_be_grad_cam(tmp_path: Path, pool: str) -> None:
    with in_the_table() as architecture:
        net = dla.create_model(architecture, num_classes=4, global_pool=pool).eval()
        model_args = {"global_pool": pool}
        write_folder(tmp_path / "m", net.state_dict(), ModelConfig(architecture, 4, model_args=model_args))
        classifier = dla.load(str(tmp_path / "m"), engine="openvino")
        explained = classifier.explain(CHELSEA)
    assert explained.method == ("cam" if pool == "fastavg" else "grad-cam")
    theirs = LayerGradCam(net, net.level5).attribute(x_of(classifier, CHELSEA), explained.target.index)
    wanted_hw = theirs[0, 0].detach().numpy() * (explained.map.size if pool == "fastavg" else 1)
    assert np.abs(explained.map - wanted_hw).max() < 1e-5 * np.abs(wanted_hw).max()


def test_all_engines_give_one_map(in_openvino: dla.Classifier, classifier: dla.Classifier) -> None:
    ours, theirs = (c.explain(ROCKET).map for c in (in_openvino, classifier))
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()


def test_an_int8_model_is_explained_in_fp32(in_openvino: dla.Classifier) -> None:
    assert isinstance(in_openvino.engine, OpenvinoEngine)
    never_run = object()
    quantized = OpenvinoEngine(in_openvino.engine.network, "int8", 1, never_run)
    explained = dataclasses.replace(in_openvino, engine=quantized).explain(CHELSEA)
    assert quantized.name == "OpenVINO on cpu in int8"
    assert explained.engine == "OpenVINO on cpu"
    assert explained.to_dict() == in_openvino.explain(CHELSEA).to_dict()


def test_against_a_class_the_map_is_the_difference(in_openvino: dla.Classifier) -> None:
    alone = in_openvino.explain(CHELSEA, "Egyptian cat")
    explained = in_openvino.explain(CHELSEA, "Egyptian cat", against="n02123045")
    k, other = explained.target.index, explained.against.index
    assert explained.against.class_id == "n02123045"
    assert np.allclose(explained.map, alone.maps[k] - alone.maps[other], atol=1e-5)
    difference = explained.target.logit - explained.against.logit
    assert explained.map.mean() + explained.bias == pytest.approx(difference, abs=1e-5)


def test_the_record_is_json(in_openvino: dla.Classifier) -> None:
    explained = in_openvino.explain(COFFEE, "teapot", against="espresso")
    record = json.loads(json.dumps(explained.to_dict()))
    assert list(record) == ["schema", "path", "width", "height", "index", "class_id", "label", "probability", "logit",
                            "against", "at", "method", "engine", "box", "peak", "bias", "shape", "values"]  # fmt: skip
    assert (record["schema"], record["shape"], record["label"]) == ("dla.explain/1", [4, 4], "teapot")
    assert np.mean(record["values"]) + record["bias"] == pytest.approx(
        record["logit"] - record["against"]["logit"], abs=1e-5
    )
    (gone,) = in_openvino.explain(["gone.jpg"])
    assert gone.to_dict()["error"]["code"] == "not_found"
    for use in (gone.overlay, lambda: gone.peak):
        with pytest.raises(ValueError, match=r"gone\.jpg has no map: gone\.jpg: there is no such file"):
            use()


def test_what_is_not_there_is_said(in_openvino: dla.Classifier) -> None:
    with pytest.raises(dla.UnknownNameError, match='no class of this network is called "tepot". Nearest: teapot'):
        in_openvino.explain(COFFEE, "tepot")
    with pytest.raises(dla.UnknownNameError, match='no class of this network is called "dog"'):
        in_openvino.explain(COFFEE, against="dog")
    with pytest.raises(dla.UnknownNameError, match='no node of this network is called "level9"'):
        in_openvino.explain([COFFEE], at="level9")
    with pytest.raises(dla.UsageError, match="pre_logits has no places to show"):
        in_openvino.explain(COFFEE, at="pre_logits")
    with pytest.raises(dla.ImageError, match="no such file"):
        in_openvino.explain("gone.jpg", strict=True)


def test_a_class_is_found_by_its_id_and_by_a_label_of_its_own() -> None:
    crane, bird = ClassName("n1", "crane", ""), ClassName("n2", "crane", "")
    classes = (crane, bird, ClassName("n3", "n1", ""), ClassName("n4", "lamp", ""))
    assert [find_class(classes, name) for name in ("n1", "n2", "n3", "lamp")] == [0, 1, 2, 3]
    with pytest.raises(dla.UsageError, match='2 classes have the label "crane". Give an id: n1, n2'):
        find_class(classes, "crane")


class Brightness(Engine):
    """Scores the light of each place: of the first class for it, of the second one against it."""

    name = "brightness"

    def _check_node(self, at: str) -> None:
        assert at == "level5"

    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        n, height, width, _ = pixels_NHW3.shape
        cells = pixels_NHW3.astype(np.float32).reshape(n, height // 8, 8, width // 8, 8, 3)
        return cells.mean((2, 4, 5))[:, None] / 255

    def classifier(self) -> tuple[Array, Array]:
        return np.array([[1], [-1]], np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_peak_is_on_the_upright_photo_in_the_part_that_was_seen(mode: str, orientation: int) -> None:
    preprocessing = Preprocessing((64, 64), 1.0, mode)  # type: ignore[arg-type]
    classes = (ClassName("light", "light", ""), ClassName("dark", "dark", ""))
    explainer = Explainer(Brightness(), preprocessing, classes, ModelConfig("dla34", 2))
    upright = np.full((240, 400, 3), 20, np.uint8)
    upright[170:240, 250:320] = 240  # below on the right; inside of the square that `center` leaves
    back = Image.Transpose  # what the decoder's turn undoes
    stored = {2: back.FLIP_LEFT_RIGHT, 3: back.ROTATE_180, 4: back.FLIP_TOP_BOTTOM, 5: back.TRANSPOSE,
              6: back.ROTATE_90, 7: back.TRANSVERSE, 8: back.ROTATE_270}  # fmt: skip
    image, exif, data = Image.fromarray(upright), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    (image.transpose(stored[orientation]) if orientation > 1 else image).save(data, "PNG", exif=exif)
    explained = explainer.explain(data.getvalue(), ExplainOptions("light"), {})
    assert explained.photo.size == (400, 240)
    x, y = explained.peak
    reach = 400 / 64 * 8  # a cell of the map
    assert abs(x - 285) < reach
    assert abs(y - 205) < reach
    overlay = np.asarray(explained.overlay().crop((0, 0, 400, 240))).astype(int)
    warmth = overlay[:, :, 0] - overlay[:, :, 2]
    row, column = np.unravel_index(warmth.argmax(), warmth.shape)
    assert abs(column - 285) < reach
    assert abs(row - 205) < reach


def test_activations_are_the_means_of_each_nodes_map(
    classifier: dla.Classifier, in_torch: dla.Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []
    tap = TorchEngine.tap
    monkeypatch.setattr(TorchEngine, "tap", lambda *given: passes.append(given) or tap(*given))
    found = classifier.activations(CHELSEA)
    assert len(passes) == 1
    names = [node.name for node in found.nodes]
    assert names == ["level0", "level1", "level2", "level3.tree1", "level3", "level4.tree1", "level4", "level5"]
    for node in found.nodes:
        features = in_torch.features(CHELSEA, node.name).values
        assert node.channels == len(features)
        assert node.map.shape == features.shape[1:] == (128 // node.stride,) * 2
        assert np.abs(node.map - features.mean(0)).max() < 1e-4 * np.abs(features).max()
    record = json.loads(json.dumps(found.to_dict()))
    assert record["schema"] == "dla.activations/1"
    assert record["nodes"][-1]["shape"] == [4, 4]
    assert np.allclose(record["nodes"][0]["values"], found.nodes[0].map, rtol=1e-3)
    (gone,) = classifier.activations(["gone.jpg"])
    assert gone.to_dict()["error"]["code"] == "not_found"


def test_a_network_without_classes_explains_nothing(tmp_path: Path) -> None:
    with in_the_table() as architecture:
        net = dla.create_model(architecture, num_classes=0)
        write_folder(tmp_path / "m", net.state_dict(), ModelConfig(architecture, 0))
        with pytest.raises(dla.UsageError, match="has no classes, so it cannot classify"):
            dla.load(str(tmp_path / "m"), engine="torch").explain(CHELSEA)
