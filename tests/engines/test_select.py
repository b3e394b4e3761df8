"""Which engine runs: what was asked for, what was measured, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import dla
from dla.cli import main
from dla.engines import cpu, select
from dla.engines.select import ENGINES, TITLES, EngineTiming, select_fastest
from dla.models.build import build
from dla.weights.model_folder import ModelConfig, write_folder
from support.photos import COFFEE

pytestmark = pytest.mark.slow

OPENVINO, ONNX, TORCH = TIMINGS = (
    EngineTiming("openvino", 0.3, 0.02, 0.01),
    EngineTiming("onnx", 0.2, 0.01, 0.02),
    EngineTiming("torch", 0.1, 0.01, 0.005),
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small network that nobody has measured."""
    monkeypatch.setenv("DLA_CACHE", str(tmp_path / "cache"))
    net, cfg = build("dla46x_c", num_classes=2), {"input_size": [3, 32, 32]}
    write_folder(tmp_path / "m", net.state_dict(), ModelConfig("dla46x_c", 2, pretrained_cfg=cfg))
    return str(tmp_path / "m")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Engines that were measured, without the seconds that it takes."""
    asked: list[str] = []

    def seconds(run: MethodType, pixels_NHW3: object) -> float:
        asked.append(run.__self__.name)
        return {"OpenVINO": 0.4, "ONNX Runtime": 0.2, "PyTorch": 0.3}[asked[-1].removesuffix(" on cpu")]

    monkeypatch.setattr(select, "_seconds", seconds)
    return asked


def test_every_engine_by_its_name(model: str) -> None:
    for engine in ENGINES:
        assert dla.load(model, engine=engine).engine.name == f"{TITLES[engine]} on cpu"


def test_the_fastest() -> None:
    assert select_fastest(TIMINGS, None) == TORCH
    assert select_fastest(TIMINGS, 2) == TORCH
    assert select_fastest(TIMINGS, 1) == ONNX  # PyTorch would have to be imported
    assert select_fastest((TORCH,), 1) == TORCH


@pytest.mark.parametrize("photos", [None, 1, 15, 20])
def test_a_small_job_measures_nothing(model: str, measured: list[str], photos: int | None) -> None:
    assert dla.load(model, photos=photos).engine.name == "OpenVINO on cpu"
    assert len(measured) == (photos == 20)  # one look at whether measuring would pay


def test_one_photo_has_the_engine_to_itself(model: str) -> None:
    engine = dla.load(model, photos=1).engine
    engine.probabilities(np.zeros((1, 32, 32, 3), np.uint8))
    (compiled,) = engine.models.get().compiled.values()  # type: ignore[attr-defined]
    assert (compiled.for_one is not None, compiled.for_many) == (True, None)


def test_a_build_of_pytorch_without_gpus_is_not_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for build_, has in (("2.13.0+cpu", False), ("2.13.0", True)):
        monkeypatch.setattr(cpu, "version", lambda name, build_=build_: build_)
        assert cpu.has_gpu() is has


def test_a_large_job_measures_and_remembers(model: str, measured: list[str]) -> None:
    assert dla.load(model, photos=10_000).engine.name == "ONNX Runtime on cpu"
    assert set(measured) == {f"{title} on cpu" for title in TITLES.values()}
    measured.clear()
    assert dla.load(model, photos=10_000).engine.name == "ONNX Runtime on cpu"
    assert dla.load(model).engine.name == "ONNX Runtime on cpu"
    assert not measured
    assert dla.load(model, photos=10_000, threads=cpu.cores() + 1).engine.name
    assert measured  # other threads are another question
    assert dla.load(model, photos=10_000, engine="openvino").engine.name == "OpenVINO on cpu"


def test_info_tells(model: str, measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model, "--engines"]) == 0
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[0].split() == ["engine", "cold", "start", "one", "photo", "many", "photos"]
    assert lines[2].startswith("onnx")
    assert "40.0 photos/s  used for " in lines[2]
    assert lines[2].endswith("many")
    assert "20.0 photos/s" in lines[1]
    choice = dla.info(model, engines=True).engines
    assert choice is not None
    assert choice.best_for_many == "onnx"
    assert choice.best_for_one in ("openvino", "onnx")


def test_what_is_not_here_cannot_be_timed(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert main(["info", "dla60", "--engines"]) == 3
    assert "the weights of dla60, which are not downloaded. Try: dla pull dla60" in capsys.readouterr().err
    assert main(["info", "dla34_half", "--engines"]) == 2


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = select.find_spec
    monkeypatch.setattr(select, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert main(["predict", str(COFFEE), "--engine", "onnx"]) == 3
    assert capsys.readouterr().err == "dla: the engine onnx is not installed: pip install '.[engines]'\n"
    assert select.installed() == ("openvino", "torch")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "onxx"], 'no engine is called "onxx". Nearest: onnx. All: auto, openvino, onnx, torch'),
        (["--engine", "onnx", "--precision", "bf16"], "the engine onnx computes in fp32, not in bf16. {openvino}"),
        (["--engine", "openvino", "--device", "cuda"], "the engine openvino runs on the CPU, not on cuda. {torch}"),
    ],
)  # fmt: skip
def test_what_cannot_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(COFFEE), *words]) == 2
    said = said.format(openvino="Try --engine openvino", torch="Try --engine torch")
    assert capsys.readouterr().err == f"dla: {said}\n"


def test_options_that_no_flag_can_have() -> None:
    with pytest.raises(dla.UsageError, match="precision is 'fp16'. Allowed: fp32, bf16"):
        dla.load(precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(dla.UsageError, match="threads is 0. Allowed: 1 to 1,024"):
        dla.load(threads=0)


@pytest.mark.parametrize("engine", ["auto", "openvino", "torch"])
def test_bf16_without_the_instruction(
    engine: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if cpu.has_bf16():
        monkeypatch.setattr("dla.engines.torch.has_bf16", lambda: False)
        monkeypatch.setattr("dla.engines.openvino.has_bf16", lambda: False)
    assert main(["predict", str(COFFEE), "--engine", engine, "--precision", "bf16"]) == 2
    assert "this CPU has no instruction for bf16" in capsys.readouterr().err


def test_bf16_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the instruction PyTorch computes the same, only slowly."""
    monkeypatch.setattr("dla.engines.torch.has_bf16", lambda: True)
    exact = dla.load(engine="torch").predict(COFFEE, topk=200)
    engines = ("openvino", "torch") if cpu.has_bf16() else ("torch",)
    for engine in engines:
        rough = dla.load(engine=engine, precision="bf16")
        assert rough.engine.name == f"{TITLES[engine]} on cpu in bf16"
        found = rough.predict(COFFEE, topk=200)
        assert found.classes[0].class_id == exact.classes[0].class_id
        assert found.classes[0].probability != exact.classes[0].probability
        assert found.classes[0].probability == pytest.approx(exact.classes[0].probability, abs=0.05)


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("flags\t\t: fpu avx2 fma avx512f avx512_bf16", True),
        ("flags\t\t: fpu avx2 fma amx_bf16", True),
        ("flags\t\t: fpu avx2 fma avx512f", False),
        ("Features\t: fp asimd bf16", True),
        ("", False),
    ],
)
def test_instructions(line: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor\t: 0\n{line}\n\n{line}\n")
    cpu.instructions.cache_clear()
    try:
        assert cpu.has_bf16() is has
        assert "fpu" not in cpu.machine()
    finally:
        cpu.instructions.cache_clear()


@pytest.mark.parametrize(
    ("limit", "left"),
    [
        ("AVX2", ("avx", "avx2", "fma", "sse4_1")),
        ("avx512_core", ("avx", "avx2", "avx512f", "fma", "sse4_1")),
        ("AVX512_CORE_VNNI", ("avx", "avx2", "avx512_vnni", "avx512f", "fma", "sse4_1")),
        ("DEFAULT", ("avx", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "fma", "sse4_1")),
    ],
)
def test_what_a_user_withholds_is_not_there(limit: str, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    line = "flags\t\t: fpu sse4_1 avx avx2 fma avx512f avx512_vnni avx512_bf16"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: f"processor\t: 0\n{line}\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    cpu.instructions.cache_clear()
    try:
        assert cpu.instructions() == left
    finally:
        cpu.instructions.cache_clear()


def test_a_gpu_takes_what_is_more_than_one_photo(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dla.inference.open_engine.has_gpu", lambda: True)
    assert dla.load(model).engine.name.startswith("PyTorch on ")
    assert dla.load(model, photos=1).engine.name == "OpenVINO on cpu"
    assert dla.load(model, device="cpu").engine.name == "OpenVINO on cpu"


def test_a_network_that_only_pytorch_runs(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(net: object) -> None:
        raise NotImplementedError("unsupported operation %gelu")

    monkeypatch.setattr("dla.engines.tracing.trace_ops", unsupported)
    assert dla.load(model).engine.name == "PyTorch on cpu"
    assert main(["predict", str(COFFEE), "--model", model]) == 0
    for words in (["predict", str(COFFEE), "--engine", "onnx", "--model", model], ["info", model, "--engines"]):
        capsys.readouterr()
        assert main(words) == 2
        said = f"dla: {model} has a part that only PyTorch runs (unsupported operation %gelu). Try --engine torch\n"
        assert capsys.readouterr().err == said


def test_threads_of_pytorch_are_set_back() -> None:
    before = torch.get_num_threads()
    classifier = dla.load(engine="torch", threads=before + 1)
    assert classifier.predict(COFFEE).classes
    assert torch.get_num_threads() == before


def test_stopwatch_by_the_clock(model: str) -> None:
    """The real one: every engine, in positive seconds, and the first answer takes longer than one photo."""
    from dla.inference.open_engine import time_engines

    choice = time_engines(model)
    assert [t.engine for t in choice.timings] == list(select.installed())
    assert all(t.cold_start_s > t.latency_s > 0 and t.per_photo_s > 0 for t in choice.timings)
