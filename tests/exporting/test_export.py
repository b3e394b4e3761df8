"""Exported files: what they answer, what they tell, when they are not kept."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dla
from dla.engines.openvino import import_openvino
from dla.engines.torch import TorchEngine
from dla.errors import CheckError, DlaError, UnknownNameError, UsageError
from dla.exporting import targets, verify
from dla.exporting.classifier_file import ClassifierFile
from dla.exporting.readme import usage_script
from dla.exporting.targets import to_program
from dla.exporting.verify import FileAnswer, FileComparison, SampleImages
from dla.images.preprocessing import Preprocessing
from dla.inference.pipeline import PreparedInput
from dla.models.build import build
from dla.options import ReadOptions
from dla.weights.model_folder import ModelConfig, set_fields, write_folder
from dla.weights.spec import shipped
from support.photos import CHELSEA, COFFEE, jpeg
from support.progress import Recorder
from support.tiny import in_the_table, shallow

pytestmark = pytest.mark.slow

TINY = "shipped:tiny200"
MADE = [("onnx", True), ("onnx", False), ("openvino", True), ("openvino", False), ("pt2", False)]
WATCH = """\
import runpy, sys
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("socket.") else None)
script = sys.argv.pop(1)
sys.path = [p for p in sys.path if p not in ("", {source!r})]
sys.argv = [script, *sys.argv[1:]]
runpy.run_path(script, run_name="__main__")
print(sorted({{"torch", "dla", "onnx", "openvino_telemetry"}} & set(sys.modules)), seen)
"""


@pytest.fixture(scope="module")
def cooled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The network that comes along, at another temperature, in a folder of its own."""
    folder = tmp_path_factory.mktemp("cooled") / "model"
    folder.mkdir()
    for path in shipped("tiny200").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    set_fields(folder, temperature=1.7)
    return str(folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, cooled: str) -> dict[tuple[str, bool], Any]:
    """One folder a format, checked with fewer images than usual; those that take pixels at another temperature."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "SAMPLE_IMAGES", 12)
        return {
            (to, inside): dla.export(TINY if inside else cooled, folder / f"{to}-{inside}", to, preprocessing=inside)
            for to, inside in MADE
        }


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A photo that its EXIF block turns."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    path.write_bytes(jpeg(Image.open(COFFEE).convert("RGB").rotate(90, expand=True), exif=exif))
    return path


def asked(made: Any, photo: Path) -> tuple[list[tuple[str, str]], str]:
    """The labels that use.py prints, each with its per cent, and what it loaded and told; run from elsewhere."""
    code = WATCH.format(source=str(Path(dla.__file__).parents[1]))
    env = {"PATH": os.environ["PATH"], "HOME": str(photo.parent), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-W", "error", "-c", code, str(made.folder / "use.py"), str(photo)]
    done = subprocess.run(words, env=env, cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, last = done.stdout.splitlines()
    return [(label, score) for score, _, label in (line.strip().partition(" %  ") for line in lines)], last


@pytest.mark.parametrize(("to", "inside"), MADE)
def test_use_py_says_what_predict_says(
    to: str, inside: bool, exported: dict[tuple[str, bool], Any], cooled: str, turned: Path
) -> None:
    found, last = asked(exported[to, inside], turned)
    expected = dla.load(TINY if inside else cooled, engine="torch").predict(turned).classes
    assert [label for label, _ in found] == [c.label for c in expected]
    for (_, score), c in zip(found, expected, strict=True):
        assert abs(float(score) - 100 * c.probability) <= 0.11  # of a rounded figure, from pixels within one level
    assert last == f"{['torch'] if to == 'pt2' else []} []"


@pytest.mark.parametrize("kind", ["16 bits", "transparent", "grey", "palette"])
def test_use_py_reads_as_predict_does(
    kind: str, exported: dict[tuple[str, bool], Any], cooled: str, tmp_path: Path
) -> None:
    whole = Image.open(CHELSEA).convert("RGB")
    if kind == "16 bits":
        image = Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) * 257)
    elif kind == "transparent":
        image = whole.copy()
        image.putalpha(Image.linear_gradient("L").resize(whole.size))
    else:
        image = whole.convert("L" if kind == "grey" else "P")
    image.save(tmp_path / "p.png")
    found, _ = asked(exported["onnx", False], tmp_path / "p.png")
    expected = dla.load(cooled, engine="torch").predict(tmp_path / "p.png").classes
    assert [label for label, _ in found] == [c.label for c in expected]
    for (_, score), c in zip(found, expected, strict=True):
        assert abs(float(score) - 100 * c.probability) <= 0.11


@pytest.mark.parametrize("kind", ["here", "link", "mounted"])
def test_into_an_empty_folder_that_is_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 3)
    folder = tmp_path / "there"
    folder.mkdir()
    number = folder.stat().st_ino
    monkeypatch.chdir(folder)
    (tmp_path / "link").symlink_to("there")
    dla.export(TINY, {"here": ".", "link": tmp_path / "link", "mounted": folder}[kind], "onnx")
    assert sorted(os.listdir(folder)) == ["README.md", "model.onnx", "report.json", "use.py"]
    assert folder.stat().st_ino == number  # not another in its place
    assert sorted(os.listdir(tmp_path)) == ["link", "there"]


def test_onnx_of_any_size(exported: dict[tuple[str, bool], Any]) -> None:
    path = str(exported["onnx", True].file)
    session = onnxruntime.InferenceSession(path)
    classifier = dla.load(engine="torch")
    photo = Image.open(CHELSEA).convert("RGB")
    for count, size in ((3, (97, 131)), (1, (450, 301))):
        images = [photo.resize(size).rotate(10 * i) for i in range(count)]
        (found,) = session.run(None, {"pixels": np.stack([np.asarray(image) for image in images])})
        pixels = np.stack([classifier.preprocessing.pixels(image) for image in images])
        expected = classifier.probabilities(pixels)
        assert (found.argmax(1) == expected.argmax(1)).all()
        assert np.abs(found - expected).max() < 0.01
    onnx.checker.check_model(path, full_check=True)


def test_the_file_tells_what_it_is(exported: dict[tuple[str, bool], Any]) -> None:
    expected = dla.info()
    labels, class_ids = [label for _, label in expected.classes], [class_id for class_id, _ in expected.classes]
    told = dict(onnxruntime.InferenceSession(str(exported["onnx", True].file)).get_modelmeta().custom_metadata_map)
    model = import_openvino().Core().read_model(exported["openvino", True].file)
    extra = {"about.json": ""}
    torch.export.load(exported["pt2", False].file, extra_files=extra)
    for texts in (told, {key: model.get_rt_info(["dla", key]).value for key in told}):
        assert (json.loads(texts["labels"]), json.loads(texts["class_ids"])) == (labels, class_ids)
        assert json.loads(texts["preprocessing"])["input_size"] == list(dla.info(TINY).input_size)
        assert (
            texts["weights_sha256"]
            == hashlib.sha256((shipped("tiny200") / "model.safetensors").read_bytes()).hexdigest()
        )
        assert (texts["license"], texts["dataset"]) == (expected.license, expected.dataset)
        assert texts["dla"] == dla.__version__
    about = json.loads(extra["about.json"])
    assert (about["labels"], about["temperature"], about["preprocessing"]["inside"]) == (labels, 1.7, False)


@pytest.mark.parametrize(("to", "inside"), MADE)
def test_the_report(to: str, inside: bool, exported: dict[tuple[str, bool], Any]) -> None:
    made = exported[to, inside]
    written = json.loads((made.folder / "report.json").read_text())
    assert written == json.loads(json.dumps(made.report.to_dict()))
    assert (written["schema"], written["passed"], written["batch_sizes"]) == ("dla.export/1", True, [1, 3, 8])
    assert (written["photos"], written["images"]) == (6, 12 + (11 if inside else 8))
    assert written["max_difference"] < 1e-4
    assert (written["max_pixel_difference"], written["photo_disagreements"]) == ((1, []) if inside else (None, None))
    files = {"onnx": ["model.onnx"], "openvino": ["model.bin", "model.xml"], "pt2": ["model.pt2"]}[to]
    assert sorted(os.listdir(made.folder)) == sorted(["README.md", "report.json", "use.py", *files])
    assert f"{made.report.images} images made from 6 photos" in (made.folder / "README.md").read_text()
    assert oct(made.folder.stat().st_mode & 0o777) == oct(0o777 & ~umask())


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_photos_that_come_along_make_sixty_pictures() -> None:
    found = list(SampleImages(None, ReadOptions()))
    assert len(found) == 60
    assert len({image.image.tobytes() for image in found}) == 60
    assert len({image.image.size for image in found}) > 50
    assert [p.name for p in found] == [p.name for p in SampleImages(None, ReadOptions())]
    for path in Path(str(verify.files("dla"))).glob("shipped/photos/*"):
        assert path.stat().st_size <= 40_000


def test_photos_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(Image.open(CHELSEA).convert("RGB").crop((0, 0, 1, 9))))
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    own = SampleImages(tmp_path, ReadOptions())
    assert (len(own), len(list(own)), own.unreadable) == (60, 60, 1)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(UsageError, match=r"has no photos to check with. Leave --photos out"):
        list(SampleImages(tmp_path, ReadOptions()))


def damaged_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have files be written with a bias that the network does not have."""
    usual = targets.TARGETS["onnx"]

    def write(source: targets.ExportSource, path: Path) -> None:
        state = dict(source.network.state)
        state["fc.bias"] = state["fc.bias"] + np.linspace(0, 9, len(state["fc.bias"]))
        usual.write(replace(source, network=replace(source.network, state=state)), path)

    monkeypatch.setitem(targets.TARGETS, "onnx", replace(usual, write=write))  # type: ignore[arg-type]


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 6)
    damaged_onnx(monkeypatch)
    with pytest.raises(
        CheckError, match=r"the ONNX file does not compute the same as PyTorch.* Report: .*out\.report\.json"
    ):
        dla.export(TINY, tmp_path / "out", "onnx")
    assert os.listdir(tmp_path) == ["out.report.json"]
    report = json.loads((tmp_path / "out.report.json").read_text())
    assert report["passed"] is False
    assert report["max_difference"] > 1e-2
    one = report["disagreements"][0]
    assert one["image"].partition(",")[0] in {Path(path).name for path in SampleImages(None, ReadOptions()).paths}
    assert one["actual"] != one["expected"]
    assert one["margin"] > 0


def test_what_passes() -> None:
    a_K, b_K = np.array([0.6, 0.4]), np.array([0.4, 0.6])

    def after(same_K: np.ndarray, photo_K: np.ndarray, difference: int = 0, equal: int = 1) -> bool:
        """One image for which the file gives `same_K` on the same pixels, beside so many that are equal."""
        comparison = FileComparison(["x", "y"], True)
        for _ in range(equal):
            comparison.add(PreparedInput("p"), FileAnswer(a_K, a_K, 0, a_K))
        comparison.add(PreparedInput("p"), FileAnswer(a_K, same_K, difference, photo_K))
        return comparison.passed

    assert after(a_K + 0.99e-4, a_K)
    assert not after(a_K + 1.01e-4, a_K)
    assert not after(a_K * np.nan, a_K)
    assert not after(b_K, b_K)
    assert after(a_K, a_K, difference=1)
    assert not after(a_K, a_K, difference=2)
    assert not after(a_K, b_K, equal=198)
    assert after(a_K, b_K, equal=199)


def test_what_came_in_the_meantime_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two exports write to one folder: the one that is later finds it taken."""
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 3)
    out = tmp_path / "out"
    out.mkdir()
    compared = ClassifierFile.compare

    def slow(*given: Any) -> Any:
        (out / "use.py").write_text("the other's")
        return compared(*given)

    monkeypatch.setattr(ClassifierFile, "compare", slow)
    with pytest.raises(UsageError, match=r"out exists and is not empty, so it is left alone"):
        dla.export(TINY, out, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("use.py", "the other's")]


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"out exists and is not empty, so it is left alone"):
        dla.export(TINY, tmp_path / "out", "onnx")
    with pytest.raises(UsageError, match=r"mine.txt is a file, so nothing can be written"):
        dla.export(TINY, tmp_path / "out" / "mine.txt" / "deeper", "onnx")
    with pytest.raises(UnknownNameError, match=r'no export target is called "onx". Nearest: onnx'):
        dla.export(TINY, tmp_path / "new", "onx")  # type: ignore[arg-type]
    without = build("dla46x_c", num_classes=0)
    write_folder(tmp_path / "m", without.state_dict(), ModelConfig("dla46x_c", 0))
    with pytest.raises(UsageError, match=r"has no classes, so it cannot classify"):
        dla.export(str(tmp_path / "m"), tmp_path / "new", "onnx")
    jumps = {"input_size": [3, 32, 32], "interpolation": "nearest"}
    write_folder(
        tmp_path / "m", build("dla46x_c", num_classes=2).state_dict(), ModelConfig("dla46x_c", 2, pretrained_cfg=jumps)
    )
    with pytest.raises(
        UsageError, match=r"interpolation nearest cannot be reproduced exactly inside a file.*Try --no-preprocessing"
    ):
        dla.export(str(tmp_path / "m"), tmp_path / "new", "onnx")
    assert sorted(os.listdir(tmp_path)) == ["m", "out"]
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_part_that_only_pytorch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object) -> None:
        raise NotImplementedError("unsupported operation %sin")

    monkeypatch.setattr("dla.engines.tracing.trace_ops", unknown)
    monkeypatch.setattr("dla.inference.traced_model._read_cached", lambda files: None)
    with pytest.raises(
        UsageError, match=r"shipped:tiny200 has a part that only PyTorch runs, so it cannot be exported"
    ):
        dla.export(TINY, tmp_path / "out", "onnx")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow beyond 3 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("to", ["onnx", "openvino", "pt2"])
@pytest.mark.usefixtures("small_disk")
def test_a_full_disk(to: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DlaError, match=r"out cannot be written: ") as caught:
        dla.export(TINY, tmp_path / "out", to)
    assert caught.value.exit_code == 1
    assert [str(p) for p in tmp_path.rglob("*")] == [str(tmp_path / "out")]


def test_stopped_in_the_middle(tmp_path: Path) -> None:
    class Stop(Recorder):
        def advance(self, count: int = 1) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dla.export(TINY, tmp_path / "deep" / "out", "onnx", preprocessing=False, progress=Stop())
    assert list((tmp_path / "deep").iterdir()) == []


@settings(max_examples=15)
@given(height=st.integers(1, 90), width=st.integers(1, 90))
@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing((24, 24)),
        Preprocessing((24, 24), 1.2, "center", "bicubic", exif="ignore"),
        Preprocessing((24, 31), 0.9, "center", "nearest"),
        Preprocessing((24, 31), 0.8, "border", "box"),
        Preprocessing((24, 24), 0.9, "squash", "lanczos"),
    ],
    ids=lambda p: f"{p.crop_mode}-{p.interpolation}",
)
def test_use_py_prepares_as_dla_does(preprocessing: Preprocessing, height: int, width: int) -> None:
    text = usage_script("pt2", preprocessing, takes_photos=False)
    assert ("exif_transpose" in text) == (preprocessing.exif == "apply")
    lines = text.partition('photo.convert("RGB")\n')[2].partition("pixels_1HW3")[0]
    image = Image.open(CHELSEA).convert("RGB").crop((50, 50, 50 + width, 50 + height))
    names: dict[str, Any] = {"photo": image, "Image": Image}
    exec(lines, names)
    found, expected = np.asarray(names["photo"]).astype(int), preprocessing.pixels(image)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1


def test_pt2_of_a_network_for_small_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No larger than its stride: H and W are those."""
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 12)
    cfg = {"input_size": [3, 32, 32], "crop_pct": 1.0}
    with in_the_table() as name:
        write_folder(tmp_path / "m", build(name, num_classes=3).state_dict(), ModelConfig(name, 3, pretrained_cfg=cfg))
        made = dla.export(str(tmp_path / "m"), tmp_path / "out", "pt2")
    assert made.report.images == 12
    assert "resized and cropped as `use.py` does. N is free. |" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("block", "options"), [("bottle2neck", {"output_stride": 8}), ("basic", {"global_pool": "avgmax"})]
)
def test_pt2_takes_any_size_above_the_stride(block: str, options: dict[str, Any]) -> None:
    model, scale_shift = shallow(block, **options).eval(), Preprocessing().scale_shift()
    module = to_program(model, *scale_shift, 2.0, (64, 48)).module()
    engine = TorchEngine(model, *scale_shift, "cpu")
    generator = np.random.default_rng(0)
    for shape in ((1, 64, 48, 3), (3, 40, 91, 3)):
        pixels = generator.integers(256, size=shape, dtype=np.uint8)
        expected = torch.log(torch.from_numpy(engine.probabilities(pixels))).div(2).softmax(1)
        torch.testing.assert_close(module(torch.from_numpy(pixels)), expected, rtol=0, atol=1e-6)
