"""benchmarks/gpu.py without a GPU: what it says, what it rehearses, what it writes, and when it stops."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import dla

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    for name in ("DLA_CACHE", "PYTHONPATH", "OMP_NUM_THREADS"):  # main sets them for the processes that it starts
        monkeypatch.setenv(name, "")
    return importlib.import_module("gpu")


def found(folder: Path, part: str) -> dict:
    return json.loads((folder / f"{part}.json").read_text())


def test_without_a_gpu_it_says_so_and_measures_nothing(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == gpu.NO_GPU + "\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [[], ["--output", "out", "--only", "speed"]])
def test_what_is_no_part_is_refused(gpu: ModuleType, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main(words)
    assert "usage:" in capsys.readouterr().err


def test_what_there_is_no_time_for_is_listed(gpu: ModuleType, tmp_path: Path) -> None:
    assert gpu.main(["--rehearse", "--seconds", "0", "--output", str(tmp_path)]) == 0
    for part in gpu.PARTS:
        record = found(tmp_path, part)
        assert (record["schema"], record["part"], record["finished"]) == ("dla.gpu/1", part, True)
        assert record["versions"]["torch"] == torch.__version__
        assert record["rows"] == []
        assert {row["why"] for row in record["not_run"]} == {"out of time"}


def test_a_rehearsal_runs_what_needs_no_gpu_and_names_the_rest(gpu: ModuleType, tmp_path: Path) -> None:
    module = importlib.import_module("gpu_inference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_first_answer", lambda *_: {"ms": {}})  # two processes, and seconds
        assert gpu.main(["--rehearse", "--only", "inference", "--output", str(tmp_path)]) == 0
    record = found(tmp_path, "inference")
    rows = {row["row"]: row for row in record["rows"]}
    assert not [row for row in record["rows"] if "error" in row]
    assert rows["dla46_c, fp32, batch 2"]["differs from timm"]["dla"] == 0
    assert rows["dla46_c, fp32, photos from the host, batch 1"]["differs from timm"] < 1e-5
    assert {row["why"] for row in record["not_run"]} == {"needs a GPU"}
    assert "dla46_c, bf16 channels_last, CUDA graph, batch 1" in [row["row"] for row in record["not_run"]]


def test_a_row_that_breaks_costs_itself_alone(gpu: ModuleType, tmp_path: Path) -> None:
    record = importlib.import_module("gpu_record").Record(tmp_path / "a.json", "a", 60.0, {})

    def breaks() -> dict:
        raise dla.UsageError("no such thing")

    record.row("bad", breaks)
    record.row("good", lambda: {"ms": 1.0})
    bad, good = found(tmp_path, "a")["rows"]
    assert bad["error"] == "UsageError: no such thing"
    assert (good["row"], good["ms"]) == ("good", 1.0)
    assert found(tmp_path, "a")["finished"] is False
