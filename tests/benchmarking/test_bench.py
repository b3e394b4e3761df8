"""How fast networks are: what is planned, what the processes do, what is made of their seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dla
from dla.benchmarking import baseline
from dla.benchmarking.bench import BenchmarkPlan, add_random_int8, write_random_model
from dla.benchmarking.rows import peak_flops, rows_of
from dla.benchmarking.worker import CALLS, PEAK, PEAK_SIDE, ROUND_S, BenchmarkCase, Round, Worker
from dla.catalog import ModelInfo
from support.small_models import SIDE, write_small
from support.tiny import in_the_table

pytestmark = pytest.mark.slow

USUAL = {"models": ("dla34",), "engine": "all", "precision": "fp32", "batches": (1, 8), "against": None,
         "threads": None, "rounds": 7}  # fmt: skip
SECONDS = st.floats(1e-3, 10)
ROUNDS = st.lists(st.lists(SECONDS, min_size=4, max_size=9).map(lambda s: Round(tuple(s), 5)), min_size=3, max_size=3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"engine": "onxx"}, 'no engine is called "onxx". Nearest: onnx'),
        ({"precision": "fp16"}, 'no precision is called "fp16"'),
        ({"batches": (8, 0)}, "batch is 8,0: whole numbers from 1"),
        ({"batches": ()}, "batch is empty"),
        ({"against": "keras"}, "against is 'keras'. Allowed: timm"),
        ({"threads": 0}, "threads is 0: at least 1"),
        ({"rounds": 2}, "rounds is 2: at least 3"),
        ({"models": ()}, "name a network, as in: dla bench dla34"),
    ],
)
def test_what_cannot_be_planned(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(dla.UsageError, match=said.replace("(", r"\(")):
        BenchmarkPlan(**USUAL | wrong)  # type: ignore[arg-type]


def test_what_is_planned() -> None:
    plan = BenchmarkPlan(**USUAL | {"precision": "all", "against": "timm"})  # type: ignore[arg-type]
    assert plan.cases[0] == ("timm", "fp32")
    assert plan.cases[1:4] == (("openvino", "fp32"), ("onnx", "fp32"), ("torch", "fp32"))
    assert {("openvino", "bf16"), ("torch", "bf16")} < set(plan.cases[4:])
    assert BenchmarkPlan(**USUAL | {"engine": "torch"}).cases == (("torch", "fp32"),)  # type: ignore[arg-type]


def test_timm_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baseline, "find_spec", lambda name: None)
    with pytest.raises(dla.UnavailableError, match="timm is not installed, .*: pip install timm"):
        BenchmarkPlan(**USUAL | {"against": "timm"})  # type: ignore[arg-type]


def test_timm_computes_the_same_network(tmp_path: Path) -> None:
    """It is the same work: the same weights and pixels give the same probabilities."""
    folder = str(write_small(tmp_path / "m", ["a", "b", "c"]))
    pixels = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    ours = dla.load(folder, engine="torch").engine.probabilities(pixels)
    theirs = baseline.run_timm(folder, pixels, None)()
    assert ours.std() > 0.01
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_timm_lacks_an_option(tmp_path: Path) -> None:
    from dla.models.build import build
    from dla.weights.model_folder import ModelConfig, write_folder

    net = build("dla46_c", num_classes=2, output_stride=8)
    write_folder(tmp_path / "m", net.state_dict(), ModelConfig("dla46_c", 2, model_args={"output_stride": 8}))
    with pytest.raises(dla.UsageError, match="timm has no dla46_c with .*output_stride 8"):
        baseline.run_timm(str(tmp_path / "m"), np.zeros((1, 32, 32, 3), np.uint8), None)


def test_random_weights_keep_numbers_alive(tmp_path: Path) -> None:
    write_random_model("dla46_c", tmp_path / "m")
    write_random_model("dla46_c", tmp_path / "again")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("m", "again")]
    assert files[0] == files[1]
    classifier = dla.load(str(tmp_path / "m"), engine="torch")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3), np.uint8)
    for at in ("level2", "level5"):
        features = np.abs(classifier.engine.features_at(at)(pixels))
        assert 0.05 < features.mean() < 20
        assert not ((features > 0) & (features < 1e-30)).any()  # such numbers are slow


def test_a_process_has_its_rounds_and_its_own_memory() -> None:
    with Worker(BenchmarkCase(PEAK)) as running:
        running.wait()
        first, second = running.run_round(), running.run_round()
        assert min(len(first.seconds), len(second.seconds)) >= CALLS
        assert sum(second.seconds) >= ROUND_S
        assert second.peak_memory is not None
        matrices = 3 * 4 * PEAK_SIDE**2
        assert matrices < second.peak_memory < matrices + 150e6  # NumPy, and nothing of this process, which has torch
        flops = peak_flops([first, second, second])
        assert 1e9 < flops < 1e14
    assert running.process.returncode is not None


def test_a_process_that_dies() -> None:
    with Worker(BenchmarkCase(PEAK)) as running:
        running.wait()
        os.kill(running.process.pid, signal.SIGKILL)
        with pytest.raises(dla.DlaError, match="the process that ran peak was ended by signal 9"):
            running.run_round()


def test_a_process_that_cannot_run() -> None:
    said = "the engine onnx computes in fp32, not in bf16"
    with (
        Worker(BenchmarkCase("onnx", "shipped:tiny200", "bf16", 1, (64, 64))) as running,
        pytest.raises(dla.UsageError, match=said),
    ):
        running.wait()


@pytest.fixture(scope="module")
def found() -> ModelInfo:
    return dla.info("shipped:tiny200")


@given(first=ROUNDS, second=ROUNDS)
def test_figures_by_another_road(found: ModelInfo, first: list[Round], second: list[Round]) -> None:
    cases = {BenchmarkCase("timm", batch=4): first, BenchmarkCase("onnx", batch=4): second}
    base, row = rows_of("shipped:tiny200", found, False, cases, 1e12)
    every = np.concatenate([one.seconds for one in second])
    assert row.calls == len(every)
    assert row.p50_s == pytest.approx(np.percentile(every, 50))
    assert row.p95_s == np.percentile(every, 95, method="inverted_cdf")
    assert row.photos_per_s == pytest.approx(4 / row.p50_s)
    assert row.fraction_of_peak == pytest.approx(found.macs * 8 / 1e12 / row.p50_s)
    speedups = [np.median(a.seconds) / np.median(b.seconds) for a, b in zip(first, second, strict=True)]
    assert row.speedup == pytest.approx(sorted(speedups)[1])
    assert row.speedup_range == pytest.approx((min(speedups), max(speedups)))
    assert (row.peak_memory_bytes, row.baseline, base.baseline) == (5, "timm fp32", "timm fp32")
    assert base.speedup_range == (1, 1)
    assert row.top1 == pytest.approx(100 * found.results["top1"])  # type: ignore[index]


def test_random_weights_have_an_int8_model_that_passed_no_gate(tmp_path: Path) -> None:
    with in_the_table() as name:
        write_random_model(name, tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["pretrained_cfg"]["input_size"] = [3, SIDE, SIDE]
        (tmp_path / "config.json").write_text(json.dumps(config))
        add_random_int8(tmp_path)
        assert dla.load(str(tmp_path), precision="int8").engine.name == "OpenVINO on cpu in int8"
        assert dla.load(str(tmp_path), precision="auto").engine.name != "OpenVINO on cpu in int8"


def test_timm_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "m", ["a", "b", "c"])
    with Worker(BenchmarkCase("timm", str(folder), batch=2, size=(SIDE, SIDE), threads=1)) as running:
        running.wait()
        assert len(running.run_round().seconds) >= CALLS


ABANDON = """
import os, signal
from dla.benchmarking.worker import PEAK, BenchmarkCase
from dla.benchmarking.worker import Worker
running = Worker(BenchmarkCase(PEAK))
running.wait()
print(running.process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nothing_is_left_over_from_one_that_was_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDON], stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    for _ in range(600):
        stat = Path("/proc", done.stdout.strip(), "stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":  # nobody has asked for its end
            return
        time.sleep(0.1)
    pytest.fail("its process goes on")


def test_another_name_for_timm_that_does_not_load(tmp_path: Path) -> None:
    """As where torchvision is missing altogether."""
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("import no_such_part_of_timm\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        with Worker(BenchmarkCase("timm", "shipped:tiny200", size=(64, 64))) as running:
            said = "timm is installed but cannot be imported .No module named 'no_such_part_of_timm'"
            with pytest.raises(dla.UnavailableError, match=said):
                running.wait()
