"""int8 models: what a gate lets through, where one is kept, and what is never trusted."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dla
from dla.cli import main
from dla.engines import quantized
from dla.engines.cpu import instructions
from dla.engines.graph import Network
from dla.engines.quantized import QuantizedModel, parse_quantized, quantize_with_accuracy_control
from dla.errors import CheckError, DamagedError, UnavailableError, UsageError
from dla.inference import int8_store
from dla.inference.calibrate_int8 import AGREEMENT, GATE_PHOTOS, CalibrationResult, make_quantized, try_quantized
from dla.inference.traced_model import open_traced
from dla.types import NO_PROGRESS, Progress
from dla.weights.model_folder import ModelConfig, write_folder
from support.progress import Recorder

pytestmark = pytest.mark.slow

SIDE, EACH = 32, {"train": 40, "val": 250}


@pytest.fixture(scope="module", autouse=True)
def _quantised_once() -> Iterator[None]:
    """NNCF makes one form of each network: which photos calibrate it changes nothing that is asserted here."""
    int8_store: dict[tuple[str, int], QuantizedModel] = {}
    quantise = quantized.quantize

    @wraps(quantise)
    def once(network: Network, pixels: Sequence[np.ndarray], progress: Progress = NO_PROGRESS) -> QuantizedModel:
        key = network.content, len(pixels)
        if key not in int8_store:
            int8_store[key] = quantise(network, pixels, progress)
        return int8_store[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dla.engines.quantized.quantize", once)
        patch.setattr("dla.inference.calibrate_int8.quantize", once)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 photos to learn from and 500 others, in two classes, dark and light."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, each in EACH.items():
        for name, low in (("dark", 0), ("light", 156)):
            (folder / split / name).mkdir(parents=True)
            for i in range(each):
                noise = random.integers(low, low + 100, (SIDE, SIDE, 3), np.uint8)
                Image.fromarray(noise).save(folder / split / name / f"{split}{i}.png")
    return folder


def write_model(folder: Path, sure: bool) -> str:
    """The network that comes along with two classes: either it tells dark from light, or it is sure of nothing."""
    torch.manual_seed(0)
    net = dla.create_model("shipped:tiny200", pretrained=True, num_classes=2).eval()
    config = ModelConfig("dla34_half", 2, ("dark", "light"), pretrained_cfg={"input_size": [3, SIDE, SIDE]})
    sides = torch.arange(64) % 2 * 2.0 - 1
    x = (torch.rand(64, 3, SIDE, SIDE) - 0.5) * 1.7 + (sides * 1.35 + 0.15).view(-1, 1, 1, 1)
    with torch.no_grad():
        features = net.forward_head(net.forward_features(x), pre_logits=True).flatten(1)
        apart = features[sides > 0].mean(0) - features[sides < 0].mean(0)
        apart /= apart.norm() ** 2 / 4
        bias = -features.mean(0) @ apart
        net.fc.weight.copy_(torch.stack([-apart, apart]).view_as(net.fc.weight) if sure else torch.tensor(1e-9))
        net.fc.bias.copy_(torch.stack([-bias, bias]) if sure else torch.zeros(2))
    write_folder(folder, net.state_dict(), config)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("sure"), sure=True)


@pytest.fixture(scope="module")
def made(model: str, photos: Path) -> CalibrationResult:
    return make_quantized(model, photos)


def top1(model: str, photos: Path, precision: str) -> float:
    paths = sorted(photos.rglob("*.png"))
    records = dla.load(model, precision=precision).predict(map(str, paths))  # type: ignore[arg-type]
    right = [r.classes[0].class_id == path.parent.name for r, path in zip(records, paths, strict=True)]
    return sum(right) / len(right)


def test_a_labelled_gate_is_what_predict_says_of_val(made: CalibrationResult, model: str, photos: Path) -> None:
    gate = made.gate
    assert (gate.kind, gate.photos, gate.passed, gate.instructions) == ("top1", 500, True, instructions())
    assert gate.fp32 == pytest.approx(top1(model, photos / "val", "fp32"))
    assert gate.int8 == pytest.approx(top1(model, photos / "val", "int8"))
    assert gate.value == pytest.approx(gate.fp32 - gate.int8)  # type: ignore[operator]
    assert gate.low <= gate.value <= gate.high
    assert gate.fp32 > 0.99  # type: ignore[operator]


def test_the_form_lies_in_the_models_folder_and_runs(made: CalibrationResult, model: str, photos: Path) -> None:
    assert made.stored_in == str(Path(model) / "int8.zip")
    exact, quick = dla.load(model), dla.load(model, precision="int8")
    assert quick.engine.name == "OpenVINO on cpu in int8"
    noise_NHW3 = np.random.default_rng(1).integers(0, 100, (9, 48, 40, 3), np.uint8)  # another size than its own
    for pixels_NHW3 in (noise_NHW3, noise_NHW3 + 156):
        found_NK, right_NK = (c.engine.probabilities(pixels_NHW3) for c in (quick, exact))
        assert 0 < np.abs(found_NK - right_NK).max() < 0.2
    with pytest.raises(UsageError, match="features are not computed in int8"):
        quick.features(str(next(photos.rglob("*.png"))))


def test_its_convolutions_are_in_8_bits(made: CalibrationResult) -> None:
    constants = [op for op in made.quantized.model().get_ops() if op.get_type_name() == "Constant"]
    sizes: dict[str, int] = {}
    for op in constants:
        kind = op.get_element_type().to_string()
        sizes[kind] = sizes.get(kind, 0) + int(np.prod(op.shape))
    assert sizes["i8"] > 0.9 * sum(sizes.values())  # the rest are scales and biases
    assert sum(op.get_type_name() == "FakeQuantize" for op in made.quantized.model().get_ops()) > 30


def test_without_labels_the_gate_is_agreement(model: str, photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("*.png"):
        (tmp_path / f"{path.parent.name}{path.name}").symlink_to(path)
    gate = make_quantized(model, tmp_path).gate
    assert (gate.kind, gate.fp32, gate.int8) == ("agreement", None, None)
    assert gate.value >= AGREEMENT
    assert gate.photos == GATE_PHOTOS


def test_what_does_not_agree_is_not_kept(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(shutil.copytree(model, tmp_path / "m", ignore=shutil.ignore_patterns("int8.zip")))
    (tmp_path / "flat").mkdir()
    for path in photos.rglob("*.png"):
        (tmp_path / "flat" / f"{path.parent.name}{path.name}").symlink_to(path)
    monkeypatch.setattr("dla.inference.calibrate_int8.AGREEMENT", 1.01)
    with pytest.raises(CheckError, match=r"did not pass: the first class is fp32's on .* Nothing is stored"):
        make_quantized(model, tmp_path / "flat")
    assert not (tmp_path / "m" / "int8.zip").exists()
    with pytest.raises(UnavailableError, match="has no int8 model. Make one"):
        dla.load(model, precision="int8")


def test_a_labelled_gate_that_fails_leads_to_more_care(
    made: CalibrationResult, model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Recorder()
    monkeypatch.setattr("dla.inference.calibrate_int8.MAX_DROP", -1.0)
    monkeypatch.setattr("dla.inference.calibrate_int8.quantize", quantized.quantize.__wrapped__)  # with its progress

    def accuracy_control(network: Any, pixels: Any, targets_N: Any, progress: Any) -> QuantizedModel | None:
        return made.quantized if len(targets_N) == len(pixels) else None

    monkeypatch.setattr("dla.inference.calibrate_int8.quantize_with_accuracy_control", accuracy_control)
    with pytest.raises(CheckError, match=r"a loss of .* points"):
        make_quantized(model, photos, progress=progress)
    assert any("again with the layers in fp32" in sentence for sentence in progress.said)
    assert all(piece.done == piece.total for piece in progress.pieces if piece.what != "calibrating")
    assert [piece.what for piece in progress.pieces][:3] == ["reading", "calibrating", "comparing with fp32"]
    assert all(piece.done for piece in progress.pieces)


def test_with_accuracy_control(model: str) -> None:
    network, _ = open_traced(model)
    pixels = list(np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8))
    quantized = quantize_with_accuracy_control(network, pixels, np.arange(20) % 2)
    assert quantized.calibration["accuracy_control"]
    assert quantized.content == network.content
    assert quantized.model().get_output_size() == 1


@pytest.mark.parametrize("count", [40, 540])
def test_too_few_photos(model: str, photos: Path, tmp_path: Path, count: int) -> None:
    for path in sorted(photos.rglob("*.png"))[:count]:
        (tmp_path / f"{path.parent.name}{path.name}").symlink_to(path)
    with pytest.raises(UsageError, match=f"has {count} photos. At least 50 to calibrate with and 500 others"):
        make_quantized(model, tmp_path)


def test_a_small_val_is_no_gate(model: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(photos)
    (tmp_path / "val" / "dark").mkdir(parents=True)
    (tmp_path / "val" / "dark" / "0.png").symlink_to(photos / "dark" / "0.png")
    with pytest.raises(UsageError, match="val has 1 photos, and the gate needs at least 500"):
        make_quantized(model, tmp_path)


def test_auto_takes_what_passed_on_such_a_cpu(made: CalibrationResult, model: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for path in Path(model).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert dla.load(str(folder), precision="auto").engine.name == "OpenVINO on cpu in int8"
    elsewhere = replace(made.gate, instructions=("none of these",))
    (folder / "int8.zip").write_bytes(replace(made.quantized, gates=(elsewhere,)).to_bytes())
    assert dla.load(str(folder), precision="auto").engine.name == "OpenVINO on cpu"
    assert dla.load(str(folder), precision="int8").engine.name == "OpenVINO on cpu in int8"  # who asks gets it
    both = replace(made.quantized, gates=(elsewhere,)).with_gate(made.gate)
    assert both.with_gate(made.gate).gates == (elsewhere, made.gate)


@pytest.mark.parametrize(
    ("gated", "here", "holds"),
    [
        ("avx avx2 fma sse4_1", "avx avx2 fma sse4_1", True),
        ("avx avx2 fma sse4_1", "avx avx2 avx_vnni fma sse4_1", False),
        ("avx avx2 fma sse4_1", "avx avx2 avx512_vnni avx512f fma sse4_1", False),
        ("avx avx2 avx512_vnni avx512f fma", "avx avx2 avx512_bf16 avx512_vnni avx512f avx_vnni fma", True),
        ("avx avx2 avx512_vnni avx512f fma", "amx_bf16 amx_int8 avx avx2 avx512_bf16 avx512_vnni avx512f fma", False),
        ("avx avx2 avx512f fma", "avx avx2 avx512_vnni avx512f fma", False),
        ("asimd asimddp", "asimd asimddp bf16", True),
        ("asimd asimddp", "asimd asimddp i8mm", False),
        ("avx avx2 fma", "avx", False),
    ],
)
def test_a_gate_holds_where_8_bits_are_multiplied_alike(
    gated: str, here: str, holds: bool, made: CalibrationResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dla.engines.quantized.instructions", lambda: tuple(here.split()))
    gate = replace(made.gate, instructions=tuple(gated.split()))
    assert replace(made.quantized, gates=(gate,)).passed_here == (gate if holds else None)
    assert replace(made.quantized, gates=(replace(gate, passed=False),)).passed_here is None
    again = replace(made.gate, instructions=tuple(here.split()))
    assert replace(made.quantized, gates=(gate,)).with_gate(again).gates == ((again,) if holds else (gate, again))


def test_the_same_gate_again(made: CalibrationResult, model: str, photos: Path) -> None:
    assert try_quantized(made.quantized, model, photos) == made.gate


def test_on_the_instructions_of_an_older_cpu(made: CalibrationResult, model: str, photos: Path) -> None:
    if "avx2" not in instructions():
        pytest.skip("this CPU has no AVX2 to be limited to")
    code = (
        "import sys; from dla.engines.quantized import parse_quantized\n"
        "from dla.inference.calibrate_int8 import try_quantized\n"
        "gate = try_quantized(parse_quantized(open(sys.argv[1] + '/int8.zip', 'rb').read(), 'it'), *sys.argv[1:])\n"
        "print(gate.passed, *gate.instructions)"
    )
    limited = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", code, model, photos], env=limited, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "avx", "avx2", "fma", "sse4_1"], done.stderr


def test_a_form_of_other_weights_is_none(made: CalibrationResult, tmp_path: Path) -> None:
    other = write_model(tmp_path / "m", sure=False)
    (tmp_path / "m" / "int8.zip").write_bytes(made.quantized.to_bytes())
    with pytest.raises(UnavailableError, match="has no int8 model"):
        dla.load(other, precision="int8")


def test_a_damaged_form_is_told(
    made: CalibrationResult, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    for path in Path(model).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "int8.zip").write_bytes(made.quantized.to_bytes()[:-1000])
    photo = tmp_path / "p.png"
    Image.new("RGB", (8, 8)).save(photo)
    assert main(["predict", str(photo), "--model", str(folder), "--precision", "int8"]) == 3
    assert "is not a complete int8 model" in capsys.readouterr().err


def test_one_file_and_back(made: CalibrationResult) -> None:
    data = made.quantized.to_bytes()
    assert parse_quantized(data, "it") == made.quantized
    assert parse_quantized(data, "it").to_bytes() == data


def about(quantized: QuantizedModel, **changes: object) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(quantized.to_bytes())) as old, zipfile.ZipFile(whole, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, json.dumps(json.loads(data) | changes) if name == "about.json" else data)
    return whole.getvalue()


def test_one_wrong_bit_is_told(made: CalibrationResult) -> None:
    data = bytearray(made.quantized.to_bytes())
    about_and_xml = data.index(made.quantized.weights[:64])
    for place in range(0, about_and_xml, 997):
        data[place] ^= 16
        with suppress(DamagedError):
            assert isinstance(parse_quantized(bytes(data), "it"), QuantizedModel)
        data[place] ^= 16


def test_features_beside_a_form(made: CalibrationResult, model: str, photos: Path) -> None:
    """`auto` may take the int8 model for classes; features are float32's."""
    photo = str(next(photos.rglob("*.png")))
    quick = dla.load(model, precision="auto")
    assert quick.engine.name == "OpenVINO on cpu in int8"
    found, expected = (loaded.features(photo) for loaded in (quick, dla.load(model, engine="openvino")))
    np.testing.assert_array_equal(found.values, expected.values)
    assert quick.predict(photo).classes[0].probability != dla.load(model).predict(photo).classes[0].probability


def test_a_form_from_another_kind_of_cpu_is_tried_first(
    made: CalibrationResult, model: str, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    elsewhere = replace(made.gate, instructions=("none of these",))
    (folder / "int8.zip").write_bytes(replace(made.quantized, gates=(elsewhere,)).to_bytes())
    again = make_quantized(str(folder), photos, seed=5)
    assert (again.quantized.xml, again.quantized.weights) == (made.quantized.xml, made.quantized.weights)
    assert again.quantized.gates == (elsewhere, again.gate)
    assert parse_quantized((folder / "int8.zip").read_bytes(), "it") == again.quantized


@pytest.mark.parametrize("damage", [b"", b"PK", b"no archive"])
def test_a_damaged_form_is_none_but_where_it_is_asked_for(
    damage: bytes, made: CalibrationResult, model: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(model, folder)
    (folder / "int8.zip").write_bytes(damage)
    photo = str(next(photos.rglob("*.png")))
    with pytest.raises(DamagedError, match="is not a complete int8 model"):
        dla.load(str(folder), precision="int8").predict(photo)
    exact = dla.load(str(folder)).predict(photo).classes[0].probability
    found = dla.load(str(folder), precision="auto", engine="openvino").predict(photo).classes[0].probability
    assert found == pytest.approx(exact, abs=1e-5)
    again = make_quantized(str(folder), photos, seed=5)
    assert again.stored_in is not None
    assert parse_quantized((folder / "int8.zip").read_bytes(), "it") == again.quantized


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_another_way_of_packing_is_refused(made: CalibrationResult, method: int) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(made.quantized.to_bytes())) as old, zipfile.ZipFile(packed, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(DamagedError, match="it is not a complete int8 model .it uses another compression"):
        parse_quantized(packed.getvalue(), "it")


def test_photos_beside_folders_are_not_left_out(model: str, photos: Path, tmp_path: Path) -> None:
    one, *others = photos.rglob("*.png")
    for path in others:
        (tmp_path / f"{path.parent.name}{path.name}").symlink_to(path)
    (tmp_path / "thumbs").mkdir()
    (tmp_path / "thumbs" / "one.png").symlink_to(one)
    assert make_quantized(model, tmp_path).gate.kind == "agreement"


def test_what_is_wrong_with_a_table_is_told(model: str, tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("file,label\na.png,dark\n")
    with pytest.raises(UsageError, match='has no column "path". It has: file, label'):
        make_quantized(model, tmp_path / "photos.csv")


@pytest.mark.parametrize("change", [{"format": 2}, {"gates": [{}]}, {"gates": 3}, {"format": None}])
def test_what_is_no_form(made: CalibrationResult, change: dict[str, object]) -> None:
    with pytest.raises(DamagedError, match="it is not a complete int8 model"):
        parse_quantized(about(made.quantized, **change), "it")


def test_a_network_that_openvino_cannot_read(made: CalibrationResult) -> None:
    with pytest.raises(DamagedError, match="the int8 model cannot be read"):
        replace(made.quantized, xml=b"<net>").model()


@pytest.mark.parametrize("words", [["--engine", "torch"], ["--engine", "onnx"], ["--device", "cuda"]])
def test_int8_is_openvinos(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "p.png", "--precision", "int8", *words]) == 2
    assert "int8 runs in the engine openvino on the CPU" in capsys.readouterr().err


def test_of_a_file_of_weights_it_is_in_the_cache(
    made: CalibrationResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DLA_CACHE", str(tmp_path))
    network, opened = open_traced("shipped:tiny200")
    assert int8_store.find_quantized(network, replace(opened, folder=None)) is None
    ours = replace(made.quantized, content=network.content)
    assert int8_store.store_quantized(ours, opened) == "the cache folder (dla cache)"
    assert int8_store.find_quantized(network, opened) == ours
    monkeypatch.setenv("DLA_CACHE", "/proc/nope")
    assert int8_store.store_quantized(ours, opened) is None
    (tmp_path / "file").touch()
    assert int8_store.store_quantized(ours, replace(opened, origin="mine", folder=tmp_path / "file")) is None
