"""`Classifier.features` from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import dla
from dla.models.nodes import nodes
from dla.weights.load import load_model
from dla.weights.model_folder import ModelConfig, write_folder
from support.oracle import randomise, timm
from support.photos import CHELSEA, COFFEE, ROCKET, crops

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def classifier() -> dla.Classifier:
    return dla.load()


def test_one_photo_is_one_record(classifier: dla.Classifier) -> None:
    features = classifier.features(str(CHELSEA))
    assert isinstance(features, dla.Features)
    assert features.path == str(CHELSEA)
    assert features.error is None
    assert features.values.shape == classifier.features_shape() == (256,)
    assert features.values.dtype == np.float32


def test_several_photos_are_a_generator_in_order(classifier: dla.Classifier, tmp_path: Path) -> None:
    half = tmp_path / "half.jpg"
    half.write_bytes(ROCKET.read_bytes()[:60_000])
    found = classifier.features([CHELSEA, "gone.jpg", half, 42, COFFEE], "level5", allow_truncated=True)
    assert next(found).path == str(CHELSEA)
    gone, cut, number, coffee = found
    assert gone.values is None
    assert gone.error.code == "not_found"
    assert cut.truncated
    assert number.error.code == "not_an_image"
    assert cut.values.shape == coffee.values.shape == classifier.features_shape("level5")


def test_strict_raises_at_its_turn_after_those_before(classifier: dla.Classifier) -> None:
    found = classifier.features([CHELSEA, COFFEE, "gone.jpg", CHELSEA], strict=True)
    assert [next(found).path, next(found).path] == [str(CHELSEA), str(COFFEE)]
    with pytest.raises(dla.ImageError, match=r"gone\.jpg"):
        next(found)
    with pytest.raises(dla.ImageError, match=r"gone\.jpg"):
        classifier.features("gone.jpg", strict=True)


def test_the_same_photo_in_every_form_gives_the_same_features(classifier: dla.Classifier) -> None:
    image = Image.open(COFFEE).convert("RGB")
    array = np.asarray(image)
    forms = [str(COFFEE), COFFEE, COFFEE.read_bytes(), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    for at in ("pre_logits", "level3"):
        found = list(classifier.features(forms, at, batch_size=len(forms)))
        # equal pixels; where in a batch a photo stands may change the last digit
        assert all(np.allclose(f.values, found[0].values, rtol=1e-5, atol=1e-6) for f in found)
        alone = [classifier.features(form, at).values for form in forms]
        assert all(np.array_equal(values, alone[0]) for values in alone)
        assert [f.path for f in found[2:4]] == ["input 2", "input 3"]


def test_unknown_places_are_said_before_anything_is_read(classifier: dla.Classifier) -> None:
    for bad in ("logits", "level4.tree9"):
        with pytest.raises(dla.UnknownNameError, match=f'"{bad}".*Nearest'):
            classifier.features(iter([CHELSEA]), bad)
    with pytest.raises(dla.UsageError, match="batch_size is 0"):
        classifier.features([CHELSEA], batch_size=0)


def test_features_at_every_node_are_timms(tmp_path: Path) -> None:
    """timm's network and transform on the same weights and photos; hooks on its modules."""
    theirs = timm.create_model("dla46x_c", num_classes=5).eval()
    randomise(theirs)
    photos = [p.resize((224, 224)) for p in crops(3)]  # as large as the network's input: the pixels are equal
    transform = timm.data.create_transform(**timm.data.resolve_data_config({"crop_pct": 1.0}, model=theirs))
    cfg = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_pct": 1.0}
    write_folder(tmp_path / "m", theirs.state_dict(), ModelConfig("dla46x_c", 5, pretrained_cfg=cfg))
    ours = dla.load(str(tmp_path / "m"))
    places = ["level0", "level1", *(node.name for node in nodes(load_model(str(tmp_path / "m")).model))]
    expected: dict[str, Tensor] = {}
    for name in places:
        theirs.get_submodule(name).register_forward_hook(
            lambda module, args, result, name=name: expected.update({name: result.clone()})
        )
    with torch.no_grad():
        x_N3HW = torch.stack([transform(p) for p in photos])
        expected["pre_logits"] = theirs.forward_head(theirs.forward_features(x_N3HW), pre_logits=True)
    assert len(expected) == len(places) + 1 == 9
    for name, theirs_NC in expected.items():
        found = np.stack([f.values for f in ours.features(photos, name)])
        assert found.shape == theirs_NC.shape
        assert found.shape[1:] == ours.features_shape(name)
        assert np.abs(found - theirs_NC.numpy()).max() < 1e-4 * theirs_NC.abs().max()
