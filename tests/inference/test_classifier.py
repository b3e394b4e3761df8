"""`Classifier.predict` from Python."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import dla
from dla.data.prefetch import run_ahead
from dla.inference.classifier import BAR, draw_prediction
from dla.models.build import build
from dla.weights.model_folder import ModelConfig, write_folder
from support.oracle import timm
from support.photos import CHELSEA, COFFEE, ROCKET, crops, jpeg


@pytest.fixture(scope="module")
def classifier() -> dla.Classifier:
    return dla.load()


def test_one_photo_is_one_prediction(classifier: dla.Classifier) -> None:
    prediction = classifier.predict(str(CHELSEA), topk=3)
    assert isinstance(prediction, dla.Prediction)
    assert prediction.path == str(CHELSEA)
    assert [c.rank for c in prediction.classes] == [1, 2, 3]


def test_several_photos_are_a_generator_in_order(classifier: dla.Classifier) -> None:
    found = classifier.predict([CHELSEA, "gone.jpg", COFFEE])
    assert next(found).path == str(CHELSEA)
    rest = list(found)
    assert rest[0].error is not None
    assert rest[0].error.code == "not_found"
    assert rest[1].classes


def test_strict_raises_at_its_turn(classifier: dla.Classifier) -> None:
    found = classifier.predict([CHELSEA, "gone.jpg", COFFEE], strict=True, batch_size=1)
    assert next(found).classes
    with pytest.raises(dla.ImageError, match="gone.jpg"):
        list(found)


def test_the_same_photo_in_every_form_gives_the_same_answer(classifier: dla.Classifier) -> None:
    image = Image.open(COFFEE).convert("RGB")
    array = np.asarray(image)
    forms = [str(COFFEE), COFFEE, COFFEE.read_bytes(), image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)]
    answers = list(classifier.predict(forms, batch_size=len(forms)))
    assert all(a.classes == answers[0].classes for a in answers)
    assert [a.path for a in answers[2:4]] == ["input 2", "input 3"]


def test_what_is_no_image_is_said(classifier: dla.Classifier) -> None:
    with pytest.raises(dla.UsageError, match="int"):
        classifier.predict(42)
    (bad,) = classifier.predict([42])
    assert bad.error is not None
    assert "int" in bad.error.message


def test_an_open_file_is_one_photo(classifier: dla.Classifier) -> None:
    expected = classifier.predict(COFFEE).classes
    with COFFEE.open("rb") as file:
        assert classifier.predict(file).classes == expected
    assert classifier.predict(io.BytesIO(COFFEE.read_bytes())).classes == expected
    with pytest.raises(dla.UsageError, match="text mode"), COFFEE.open() as file:
        classifier.predict(file)


@pytest.mark.parametrize("what", [None, 5, {}, {str(CHELSEA): 1}])
def test_what_is_neither_one_photo_nor_several(classifier: dla.Classifier, what: object) -> None:
    with pytest.raises(dla.UsageError, match=f"given as {type(what).__name__}"):
        classifier.predict(what)


def test_a_bar_is_as_long_as_its_probability_and_one_of_nothing_is_none() -> None:
    scores = [
        dla.ClassScore(k + 1, k, str(k), str(k), probability) for k, probability in enumerate((0.5, 0.01, 0.0004, 0.0))
    ]
    page = np.asarray(draw_prediction(Image.new("RGB", (480, 100)), dla.Prediction("a.png", tuple(scores))))
    blue_HW = (page == ImageColor.getrgb(BAR)).all(2)
    tops = [100 + 12 + 30 * i for i in range(4)]
    lengths = [int(blue_HW[top : top + 30].any(0).sum()) for top in tops]
    assert lengths[0] == pytest.approx(0.5 * 456, abs=1)
    assert lengths[1] == pytest.approx(0.01 * 456, abs=2)
    assert lengths[2:] == [0, 0]


def test_pictures_that_are_a_file(classifier: dla.Classifier, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "sub"):
        with pytest.raises(dla.UsageError, match="pictures is .*file of that name"):
            classifier.predict([CHELSEA], pictures=folder)


@pytest.mark.parametrize("options", [{"topk": 0}, {"batch_size": 0}, {"workers": -1}])
def test_numbers_out_of_range(classifier: dla.Classifier, options: dict[str, int]) -> None:
    with pytest.raises(dla.UsageError, match=next(iter(options))):
        classifier.predict([CHELSEA], **options)


def test_more_classes_than_there_are_means_all(classifier: dla.Classifier) -> None:
    prediction = classifier.predict(CHELSEA, topk=10_000)
    assert len(prediction.classes) == len(classifier.classes) == 200
    assert sum(c.probability for c in prediction.classes) == pytest.approx(1, abs=1e-5)
    assert len({c.class_id for c in prediction.classes}) == 200


def test_probabilities_are_timms(tmp_path: Path) -> None:
    """timm's network, transform and softmax on the same weights and photos; 1000 classes get ImageNet's names."""
    torch.manual_seed(0)
    theirs = timm.create_model("dla46x_c").train()
    photos = [p.resize((224, 224)) for p in crops(12)]  # as large as the network's input: the pixels are equal
    config = timm.data.resolve_data_config({"crop_pct": 1.0}, model=theirs)
    transform = timm.data.create_transform(**config)
    x = torch.stack([transform(p) for p in photos])
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        theirs(x)
        expected = theirs.eval()(x).softmax(1).numpy()
    cfg = {"input_size": [3, 224, 224], "interpolation": "bilinear", "crop_pct": 1.0}
    write_folder(tmp_path / "m", theirs.state_dict(), ModelConfig("dla46x_c", 1000, pretrained_cfg=cfg))
    ours = dla.load(str(tmp_path / "m"))
    for prediction, row in zip(ours.predict(photos, topk=1000, batch_size=5), expected, strict=True):
        found = np.empty(1000)
        for c in prediction.classes:
            found[c.index] = c.probability
        assert np.abs(found - row).max() < 1e-4 * row.max()
    assert {c.class_id: c.label for c in prediction.classes}["n02123045"] == "tabby"


def test_a_folder_without_names_numbers_its_classes(tmp_path: Path) -> None:
    config = ModelConfig("dla34_half", 3)
    write_folder(tmp_path / "m", build("dla34_half", num_classes=3).state_dict(), config)
    labels = {c.label for c in dla.load(str(tmp_path / "m")).predict(CHELSEA).classes}
    assert labels == {"class_0", "class_1", "class_2"}


def test_memory_holds_only_a_few_photos() -> None:
    """Work is never further ahead than asked for, whatever the number of items."""
    made = []
    ahead = 6
    for i, item in enumerate(run_ahead(lambda n: made.append(n) or n, iter(range(500)), 3, ahead)):
        assert item == i
        assert len(made) <= i + 1 + ahead
    assert sorted(made) == list(range(500))


def test_a_record_is_json(classifier: dla.Classifier, tmp_path: Path) -> None:
    (tmp_path / "t.jpg").write_bytes(ROCKET.read_bytes()[:50_000])
    for given in (CHELSEA, tmp_path / "t.jpg"):
        record = classifier.predict(given).to_dict()
        assert json.loads(json.dumps(record)) == record


def test_jpeg_and_its_pixels_agree(classifier: dla.Classifier) -> None:
    data = jpeg(crops(1)[0])
    assert classifier.predict(data).classes[0].probability > 0
