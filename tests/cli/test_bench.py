"""`dla bench`: what is asked, in which order the cases run, what is printed, put into the chart and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar
from xml.etree import ElementTree

import pytest
from PIL import Image

import dla
from dla.benchmarking import bench
from dla.benchmarking import bench as bench_run
from dla.benchmarking.worker import PEAK, BenchmarkCase, Round
from dla.cli import main
from dla.engines.cpu import machine
from dla.errors import DlaError, UnavailableError, UsageError
from dla.options import cores
from support.small_models import write_small

pytestmark = pytest.mark.slow

INFO = dla.info("shipped:tiny200")
TOP1 = f"{100 * INFO.results['top1']:.1f}"  # type: ignore[index]
GMACS = f"{INFO.macs / 1e9:.2f} GMACs at {INFO.input_size[1]}x{INFO.input_size[2]}"
LOAD = bench_run.BackgroundLoad.cores
MS = {PEAK: 100.0, "timm": 40.0, "openvino": 10.0, "onnx": 20.0, "torch": 30.0}


class Fake:
    """A case that takes no time: what it would measure is in `MS`."""

    order: ClassVar[list[str]] = []
    refused: ClassVar[dict[tuple[str, str], DlaError]] = {}

    def __init__(self, case: BenchmarkCase, cache: str | None = None) -> None:
        self.case, self.cache, self.rounds = case, cache, 0

    def __enter__(self) -> Fake:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        if error := self.refused.get((self.case.engine, self.case.precision)):
            raise error

    def run_round(self) -> Round:
        self.order.append(f"{self.case.engine} {self.case.precision}")
        self.rounds += 1
        seconds = MS[self.case.engine] / 1000 * self.case.batch * (1 if self.case.engine == "timm" else self.rounds)
        return Round((seconds,) * 4, 10**8 * self.case.batch)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Fake]]:
    monkeypatch.setattr(bench_run, "Worker", Fake)
    for name in ("PAUSE_S", "LOAD_S"):
        monkeypatch.setattr(bench_run, name, 0.01)
    monkeypatch.setattr(bench_run.BackgroundLoad, "cores", lambda self: 0.25)
    monkeypatch.setattr(bench, "write_random_model", lambda architecture, folder: None)
    monkeypatch.setattr(bench, "add_random_int8", lambda folder: None)
    monkeypatch.setattr(Fake, "order", [])
    monkeypatch.setattr(Fake, "refused", {})
    return Fake


def no_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {
        (engine, "bf16"): UsageError("this CPU has no instruction for bf16. Try --precision fp32")
        for engine in ("openvino", "torch")
    } | {("onnx", "bf16"): UsageError("the engine onnx computes in fp32, not in bf16. Try --engine openvino")}
    monkeypatch.setattr(Fake, "refused", refused)


def test_every_case_runs_in_every_round(fake: type[Fake], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--against", "timm", "--batch-size", "1", "--rounds", "3"]) == 0
    one = [f"{name} fp32" for name in (PEAK, "timm", "openvino", "onnx", "torch")]
    assert fake.order == 3 * one
    said = capsys.readouterr()
    assert said.err == ""
    table = said.out.splitlines()
    assert table[0].endswith(f"{cores()} cores; threads: each engine's own choice")
    assert table[1] == "peak in fp32: 86 GFLOP/s (matrix multiplication in each round); background load: 0.2 cores"
    rows = [line.split() for line in table if line.startswith("    1 ")]
    assert [row[1] for row in rows] == ["timm", "openvino", "onnx", "torch"]
    assert rows[0][3:6] == ["40.0", "40.0", "25.0"]
    share = f"{100 * 2 * INFO.macs / 0.02 / (2 * 2048**3 / 0.2):.0f}"
    assert rows[1][3:] == ["20.0", "30.0", "50.0", share, "%", "100", "2.00", "(1.33", "to", "4.00)"]


def test_json_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_bf16(monkeypatch)
    file = tmp_path / "b.json"
    words = ["--precision", "all", "--batch-size", "1,4", "--rounds", "3", "--threads", "2", "--format", "json"]
    assert main(["bench", *words, "--output", str(file)]) == 0
    assert capsys.readouterr() == ("", "")
    report = json.loads(file.read_text())
    assert report["schema"] == "dla.bench/1"
    assert (report["threads"], report["rounds"], report["background_load_before"]) == (2, 3, 0.25)
    assert {"dla", "openvino", "onnxruntime", "torch"} <= set(report["versions"])
    rows = [row for row in report["rows"] if row["precision"] == "fp32"]
    assert [(row["engine"], row["batch"]) for row in rows] == [
        (engine, batch) for batch in (1, 4) for engine in ("openvino", "onnx", "torch")
    ]
    row = rows[4]
    assert (row["model"], row["architecture"], row["random_weights"]) == ("shipped:tiny200", INFO.architecture, False)
    assert (row["calls"], row["peak_memory_bytes"], row["baseline"]) == (12, 4 * 10**8, "openvino fp32")
    assert row["p50_s"] == pytest.approx(0.16)
    assert (row["speedup"], row["speedup_range"]) == (pytest.approx(0.5), [pytest.approx(0.5)] * 2)
    assert row["fraction_of_peak"] == pytest.approx(
        2 * row["macs"] * 4 / 0.16 / (2 * 2048**3 / 0.5)
    )  # in the same rounds
    left = {(one["engine"], one["precision"]): one["reason"] for one in report["skipped"]}
    assert left["torch", "bf16"] == "this CPU has no instruction for bf16"


def test_what_is_skipped_is_told_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    no_bf16(monkeypatch)
    assert main(["bench", "dla46_c", "shipped:tiny200", "--precision", "bf16", "--engine", "all"]) == 2
    assert capsys.readouterr().err.startswith("dla: this CPU has no instruction for bf16. Try --precision fp32")
    twice = ["dla46_c", "shipped:tiny200", "dla46_c", "--batch-size", "1,2,1"]
    assert main(["bench", *twice, "--precision", "all", "--rounds", "3"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "bf16" in line and not line.startswith(machine())]
    assert lines == [
        "skipped: openvino bf16, torch bf16: this CPU has no instruction for bf16",
        "skipped: onnx bf16: the engine onnx computes in fp32, not in bf16",
    ]
    assert out.count("onnx fp32  ") == 4
    about = "dla46_c: 1.3 M parameters, 0.57 GMACs at 224x224, top-1 64.9 % as published; random weights: speed only"
    assert about in out
    size = f"{INFO.params / 1e6:.1f} M parameters"
    assert f"shipped:tiny200: {size}, {GMACS}, top-1 {TOP1} % on its own validation photos" in out


def test_timm_that_does_not_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    error = UnavailableError("timm is installed but cannot be imported (no torchvision)")
    monkeypatch.setattr(Fake, "refused", {("timm", "fp32"): error})
    assert main(["bench", "--against", "timm"]) == 3
    assert capsys.readouterr() == ("", "dla: timm is installed but cannot be imported (no torchvision)\n")


def test_timm_that_lacks_an_option_is_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "refused", {("timm", "fp32"): UsageError("timm has no dla34_half with output_stride 8")})
    assert main(["bench", "--against", "timm", "--engine", "onnx", "--batch-size", "2", "--rounds", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("1: onnx fp32")
    assert lines[-1] == "skipped: timm fp32: timm has no dla34_half with output_stride 8"


def test_ctrl_c_keeps_what_was_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_round(self: Fake) -> Round:
        if self.case.batch == 8:
            raise KeyboardInterrupt
        return Round((0.01,) * 4, None)

    monkeypatch.setattr(Fake, "run_round", run_round)
    assert main(["bench", "--engine", "onnx"]) == 130
    assert "    1  onnx fp32" in capsys.readouterr().out


def test_a_busy_machine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run.BackgroundLoad, "cores", lambda self: 1.25)
    words = ["bench", "--engine", "onnx", "--batch-size", "1", "--rounds", "3"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "dla: this machine is busy: other processes use 1.2 of " in said.err
    assert "; background load: 1.2 cores; of peak is left out\n" in said.out
    assert "%" not in said.out.splitlines()[-1]
    assert main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_without_psutil(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what it cannot see, and goes on."""
    monkeypatch.setattr(bench_run.BackgroundLoad, "cores", LOAD)
    monkeypatch.setitem(sys.modules, "psutil", None)
    words = ["bench", "--engine", "onnx", "--batch-size", "1", "--rounds", "3"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err == ("dla: without psutil it is not known whether other processes disturb the measurement: "
                        "pip install '.[bench]'\n")  # fmt: skip
    assert "; background load: unknown without psutil (pip install '.[bench]'); of peak is left out\n" in said.out
    assert "%" not in said.out.splitlines()[-1]
    assert main([*words, "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    loads = (report["background_load_before"], report["background_load_during"])
    assert (*loads, report["rows"][0]["fraction_of_peak"]) == (None,) * 3


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_picture(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"p.{ending}"
    own = write_small(tmp_path / "own", ["a", "b"])
    models = ["dla34", "dla46_c", "shipped:tiny200", str(own)]
    assert (
        main(["bench", *models, "--engine", "all", "--batch-size", "1", "--rounds", "3", "--picture", str(file)]) == 0
    )
    if ending == "png":
        with Image.open(file) as image:
            assert image.width == 1800
        return
    root = ElementTree.fromstring(file.read_text())
    found = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("dla34", "dla46_c", f"shipped:tiny200, {TOP1} % of its own photos", "OpenVINO", "66 %"):
        assert text in found
    hints = [node.text for node in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "dla34, openvino fp32: 20.0 ms, 50.0 photos/s" in hints
    assert len(hints) == 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--picture", "p.jpg"], "--picture is p.jpg. Allowed: a file that ends in .svg or .png"),
        (["--output", "no/such/b.json"], "--output no/such/b.json: there is no folder no/such. Create it, or give"),
        (["--output", "/"], "--output / is a folder. Give a file"),
        (["--picture", "/tmp/no/such.svg"], "--picture /tmp/no/such.svg: there is no folder /tmp/no."),
        (["--batch-size", "1;8"], "--batch-size is 1;8. Allowed: whole numbers from 1, separated by commas"),
        (["--batch-size", "0"], "batch is 0: whole numbers from 1, as in 1,8"),
        (["--rounds", "1"], "rounds is 1: at least 3, of which the median is taken"),
        (["dla35"], 'no network is called "dla35"'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_at_once(
    fake: type[Fake], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    assert capsys.readouterr().err.startswith(f"dla: {said}")
    assert not fake.order


def test_what_is_measured_goes_into_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        assert main(["bench", "dla34", "-q", "--format", "json", "-o", str(tmp_path / "pipe")]) == 0
        assert json.loads(reader.communicate(timeout=60)[0])["rows"]
    assert not (tmp_path / "pipe").is_file()
