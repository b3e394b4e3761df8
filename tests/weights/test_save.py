"""`dla.save`: the folder gives the answers of the loop that trained the network, in dla and in timm."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dla
from dla.cli import main
from dla.weights.convert import convert
from support.oracle import randomise, timm, timm_part
from support.photos import CHELSEA, COFFEE

LABELS = ["daisy", "rose", "tulip"]
HOW = {"input_size": 96, "crop_pct": 1.0, "interpolation": "bicubic", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


def net_of_a_loop(name: str = "dla46x_c", **options: Any) -> dla.DLA:
    net = dla.create_model(name, num_classes=len(LABELS), **options)
    randomise(net)
    nn.init.normal_(net.fc.weight, 0, 0.05, generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two square photos, of which Pillow's resize alone makes the network's pixels."""
    paths = []
    for path in (CHELSEA, COFFEE):
        with Image.open(path) as image:
            paths.append(tmp_path_factory.mktemp("photos") / path.name)
            image.convert("RGB").crop((20, 0, 320, 300)).save(paths[-1])
    return paths


def answers_of_the_loop(net: nn.Module, photos: list[Path]) -> torch.Tensor:
    """What a loop of Pillow and PyTorch alone computes of the photos."""
    pixels = [np.asarray(Image.open(path).resize((96, 96), Image.Resampling.BICUBIC)) for path in photos]
    x_NHW3 = (np.stack(pixels) / 255 - HOW["mean"]) / HOW["std"]
    with torch.no_grad():
        return net.eval()(torch.from_numpy(x_NHW3).permute(0, 3, 1, 2).float()).softmax(-1)


@pytest.fixture(scope="module")
def net() -> dla.DLA:
    return net_of_a_loop()


@pytest.fixture(scope="module")
def folder(net: dla.DLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dla.save(net, tmp_path_factory.mktemp("m") / "own", labels=LABELS, preprocessing=HOW)


def test_the_folder_answers_as_the_loop(net: dla.DLA, folder: Path, photos: list[Path]) -> None:
    theirs = answers_of_the_loop(net, photos)
    assert theirs.std(1).min() > 0.01  # answers that differ between the classes
    classifier = dla.load(str(folder), engine="torch")
    assert [c.class_id for c in classifier.classes] == LABELS
    assert classifier.preprocessing.size == (96, 96)
    for expected, found in zip(theirs, classifier.predict(photos), strict=True):
        ours = [c.probability for c in sorted(found.classes, key=lambda c: c.index)]
        assert np.allclose(ours, expected, atol=1e-6, rtol=0)


def test_timm_reads_the_folder(net: dla.DLA, folder: Path, photos: list[Path]) -> None:
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config = timm_part("data").resolve_model_data_config(theirs)
    assert (theirs.num_classes, config["input_size"], config["crop_pct"]) == (3, (3, 96, 96), 1.0)
    assert (tuple(config["mean"]), tuple(config["std"])) == (HOW["mean"], HOW["std"])
    assert list(theirs.pretrained_cfg["label_names"]) == LABELS
    transform = timm_part("data").create_transform(**config)
    with torch.no_grad():
        found = theirs.eval()(torch.stack([transform(Image.open(path)) for path in photos])).softmax(-1)
    assert (found - answers_of_the_loop(net, photos)).abs().max() <= 1e-6


@pytest.mark.slow
def test_predict_and_export_answer_as_the_loop(
    net: dla.DLA, folder: Path, photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = answers_of_the_loop(net, photos)
    words = [*map(str, photos), "--model", str(folder), "--format", "jsonl", "--engine", "torch", "-q"]
    assert main(["predict", *words]) == 0
    for line, row in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
        found = {c["class_id"]: c["probability"] for c in json.loads(line)["predictions"]}
        assert [found[name] for name in LABELS] == pytest.approx(row.tolist(), abs=1e-6)
    # pixels that a file resizes itself may be one level off Pillow's, which is more than 1e-6
    exported = dla.export(str(folder), tmp_path / "out", "onnx", preprocessing=False)
    assert exported.report.passed
    import onnxruntime

    session = onnxruntime.InferenceSession(str(exported.file))
    for path, row in zip(photos, expected, strict=True):
        pixels_HW3 = np.asarray(Image.open(path).resize((96, 96), Image.Resampling.BICUBIC))
        (found,) = session.run(None, {session.get_inputs()[0].name: pixels_HW3[None]})
        assert np.abs(found.ravel() - row.numpy()).max() <= 1e-6


def test_the_network_is_left_as_it_was(net: dla.DLA, tmp_path: Path) -> None:
    net.train()
    net.level2.eval()
    before = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    dla.save(net, tmp_path / "m", labels=LABELS, preprocessing=HOW)
    assert [module.training for module in net.modules()] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("options", [{"output_stride": 8}, {"global_pool": "max"}, {"in_chans": 1}], ids=str)
def test_options_of_the_network_are_kept(options: dict[str, Any], tmp_path: Path) -> None:
    net = net_of_a_loop(**options).eval()
    strided = pytest.warns(UserWarning, match="output_stride is 8: timm cannot read")
    with strided if "output_stride" in options else nullcontext():
        folder = dla.save(net, tmp_path / "m", labels=LABELS, preprocessing={})
    again = dla.create_model(str(folder), pretrained=True).eval()
    x_NCHW = torch.rand(2, net.in_chans, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x_NCHW), again(x_NCHW))


def test_wrappers_and_half_precision_are_looked_through(net: dla.DLA, tmp_path: Path) -> None:
    compiled = torch.compile(net, backend="eager")
    wrapped = [nn.DataParallel(net), torch.optim.swa_utils.AveragedModel(net), compiled]
    files = [dla.save(w, tmp_path / f"{n}", labels=LABELS, preprocessing=HOW) for n, w in enumerate([net, *wrapped])]
    assert len({(file / "model.safetensors").read_bytes() for file in files}) == 1
    half = net_of_a_loop(dtype=torch.bfloat16)
    folder = dla.save(half, tmp_path / "half", labels=LABELS, preprocessing=HOW)
    stored = dla.create_model(str(folder), pretrained=True).state_dict()
    assert torch.equal(stored["fc.weight"], half.fc.weight.float())


def test_labels_may_have_readable_names(net: dla.DLA, tmp_path: Path) -> None:
    labels = {"n1": "daisy", "n2": "rose", "n3": "tulip"}
    folder = dla.save(net, tmp_path / "m", labels=labels, preprocessing=dla.Preprocessing((64, 96), exif="ignore"))
    classifier = dla.load(str(folder))
    assert {c.class_id: c.label for c in classifier.classes} == labels
    assert classifier.preprocessing == dla.Preprocessing((64, 96), exif="ignore")


def test_timms_data_config_is_a_preprocessing(net: dla.DLA, tmp_path: Path) -> None:
    config = dla.resolve_data_config({"img_size": 160, "crop_pct": 0.9}, model=net)
    folder = dla.save(net, tmp_path / "m", labels=LABELS, preprocessing=config)
    preprocessing = dla.load(str(folder)).preprocessing
    assert (preprocessing.size, preprocessing.crop_pct) == ((160, 160), 0.9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": LABELS[:2]}, "there are 2 labels, but the network has 3 classes"),
        ({"labels": "abc"}, "labels must be a list of texts"),
        ({"labels": ["a", "a", "b"]}, '"a" twice'),
        ({"labels": None}, "labels is None, but the network has 3 classes"),
        ({"preprocessing": {"input_sise": 96}}, 'field of a preprocessing is called "input_sise". Nearest: input_size'),
        ({"preprocessing": {"input_size": 0}}, "size is"),
        ({"preprocessing": {"interpolation": "cubic"}}, "interpolation is 'cubic'. Allowed: bilinear, bicubic"),
        ({"model": nn.Linear(2, 2)}, "model is a Linear. Allowed: a network of dla.create_model"),
    ],
)  # fmt: skip
def test_refusals(changed: dict[str, Any], message: str, net: dla.DLA, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": net, "labels": LABELS, "preprocessing": HOW} | changed
    with pytest.raises(dla.UsageError, match=message):
        dla.save(given.pop("model"), tmp_path / "m", **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", ["activation", "head", "nan", "own shape"])
def test_a_network_that_no_name_builds_is_refused(change: str, tmp_path: Path) -> None:
    net = net_of_a_loop(act_layer=nn.SiLU) if change == "activation" else net_of_a_loop()
    if change == "head":
        net.fc = nn.Sequential(nn.Conv2d(256, 8, 1), nn.Conv2d(8, 3, 1))
    if change == "nan":
        net.base_layer[1].weight.data[0] = torch.nan
    if change == "own shape":
        net = dla.DLA((1, 1, 1, 1, 1, 1), (4, 8, 16, 16, 24, 32), block="basic", num_classes=3)
    with pytest.raises(dla.UsageError, match="this network cannot be built from a name"):
        dla.save(net, tmp_path / "m", labels=LABELS, preprocessing=HOW)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_by_force(net: dla.DLA, folder: Path, tmp_path: Path) -> None:
    before = (folder / "config.json").read_bytes()
    with pytest.raises(dla.UsageError, match="exists already"):
        dla.save(net, folder, labels=LABELS, preprocessing={})
    assert (folder / "config.json").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(dla.UsageError, match="not a model folder"):
        dla.save(net, tmp_path, labels=LABELS, preprocessing=HOW, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    twice = dla.save(net, tmp_path / "m", labels=LABELS, preprocessing={})
    dla.save(net, twice, labels=LABELS, preprocessing=HOW, force=True)
    assert (twice / "config.json").read_bytes() == before


@pytest.fixture(scope="module")
def bare(net: dla.DLA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "own.pth"
    torch.save(net.state_dict(), path)
    return path


GUESSED = (
    "own.pth holds only weights, so a size of 224x224 pixels, crop 0.875 and the class names class_0 to class_2 are"
)


def test_a_bare_file_is_opened_with_a_warning(bare: Path, tmp_path: Path) -> None:
    for source in (bare, convert(str(bare), tmp_path / "own.safetensors").path):
        for _ in range(2):  # the second time from the cache, without torch
            with pytest.warns(dla.GuessedWarning, match=GUESSED.replace("pth", source.suffix[1:])):
                dla.load(str(source), engine="openvino")
    with pytest.warns(dla.GuessedWarning, match="dla convert .*own.pth FOLDER --labels FILE --input-size N"):
        convert(str(bare), tmp_path / "guessed")


def test_every_command_says_what_is_guessed(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", str(COFFEE), "--model", str(bare)]
    for _ in range(2):
        assert main([*words, "-q"]) == 0
        assert GUESSED in (err := capsys.readouterr().err)
        assert len(err.splitlines()) == 1
    assert main(["info", str(bare)]) == 0
    assert GUESSED in " ".join(capsys.readouterr().out.split())


def test_convert_is_told_what_a_bare_file_cannot_say(
    bare: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("daisy\nrose\ntulip\n")
    words = ["convert", str(bare), str(tmp_path / "own"), "--labels", str(tmp_path / "labels.txt")]
    how = ["--input-size", "96", "--crop-pct", "1", "--interpolation", "bicubic"]
    colours = ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.3", "0.4"]
    assert main([*words, *how, *colours]) == 0
    assert capsys.readouterr().err == ""
    ours, theirs = dla.load(str(tmp_path / "own")), dla.load(str(folder))
    assert (ours.preprocessing, ours.classes, ours.sha256) == (theirs.preprocessing, theirs.classes, theirs.sha256)
    assert main([*words, "--force"]) == 0
    assert "224x224 pixels, crop 0.875 are guesses" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\n", "there are 2 labels, but the network has 3 classes"),
        ("a\n\nb\n", "line 2 is empty"),
        ("a\nb\na\n", 'line 3 names "a" a second time'),
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8 text"),
    ],
)
def test_a_file_of_labels_that_is_wrong(
    text: str | bytes | None, said: str, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.txt"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    assert main(["convert", str(bare), str(tmp_path / "m"), "--labels", str(path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_file_of_weights_takes_no_labels(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(dla.UsageError, match="stored only in a model folder"):
        convert(str(bare), tmp_path / "m.pth", labels=LABELS)
