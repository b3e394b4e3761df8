"""What a first photo costs: no torch, and nobody is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import dla
from dla.cli import main
from dla.inference.traced_model import OPS, shipped_ops
from dla.models.build import build
from dla.weights.model_folder import ModelConfig, write_folder
from dla.weights.spec import shipped, shipped_names
from support.photos import CHELSEA, COFFEE
from support.small_models import write_dense

pytestmark = pytest.mark.slow

WATCH = """\
import atexit, os, sys
seen = []
def hook(event, args):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.posix_spawn", "os.fork", "os.exec"):
        seen.append(f"{event} {args}")
def tell():
    heavy = sorted({"torch", "onnx", "openvino_telemetry", "huggingface_hub"} & set(sys.modules))
    ours = [n for n, m in sys.modules.items() if n.split(".")[0] == "dla" and not hasattr(m, "__path__")]
    with open(os.environ["TOLD"] + ".modules", "w") as file:
        file.write("\\n".join(ours))
    with open(os.environ["TOLD"], "w") as file:
        file.write("\\n".join([*seen, f"loaded {heavy}"]))
sys.addaudithook(hook)
atexit.register(tell)
"""


def watched(tmp_path: Path, *command: str) -> str:
    """What a command did that others could notice, and which heavy modules it loaded; in a plain environment."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    told = tmp_path / "told.txt"
    path = os.pathsep.join([str(tmp_path), str(Path(dla.__file__).parents[1])])
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": path, "TOLD": str(told),
           "DLA_CACHE": str(tmp_path / "cache")}  # fmt: skip
    done = subprocess.run([sys.executable, *command], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return told.read_text()


def test_the_watch_sees_a_socket(tmp_path: Path) -> None:
    told = watched(tmp_path, "-c", "import socket; socket.socket(socket.AF_UNIX).close(); import torch")
    assert told.startswith("socket.__new__ ")
    assert told.endswith("loaded ['torch']")


def test_making_an_int8_form_tells_nobody(tmp_path: Path) -> None:
    make = ("import dataclasses, numpy as np; from dla.engines.quantized import quantize; "
            "from dla.inference.traced_model import open_traced; network = open_traced('shipped:tiny200')[0]; "
            "few_layers = dataclasses.replace(network, graph=network.graph.truncate('level2')); "
            "quantize(few_layers, [np.zeros((32, 32, 3), np.uint8)] * 2)")  # fmt: skip
    assert not [line for line in watched(tmp_path, "-c", make).splitlines() if line.startswith("socket.")]


@pytest.mark.parametrize("engine", ["auto", "openvino", "onnx"])
def test_predict_loads_no_torch_and_tells_nobody(tmp_path: Path, engine: str) -> None:
    predict = ("-m", "dla", "predict", str(COFFEE), "--engine", engine)
    first = watched(tmp_path, *predict)
    assert first == "loaded ['onnx']" if engine == "onnx" else "loaded []"
    assert watched(tmp_path, *predict) == "loaded []"


def test_a_photo_takes_few_of_our_modules(tmp_path: Path) -> None:
    """Each is read from the disk before the first answer; a package's `__init__` is not counted."""
    assert watched(tmp_path, "-m", "dla", "predict", str(COFFEE)) == "loaded []"
    ours = (tmp_path / "told.txt.modules").read_text().splitlines()
    assert "dla.inference.classifier" in ours
    assert len(ours) <= 30, ours


def test_features_load_no_torch(tmp_path: Path) -> None:
    words = ("features", str(COFFEE), "--at", "level4.tree1", "-o", "f.npz")
    assert watched(tmp_path, "-m", "dla", *words) == "loaded []"


def test_a_class_activation_map_loads_no_torch(tmp_path: Path) -> None:
    assert watched(tmp_path, "-m", "dla", "explain", str(COFFEE), "-o", "why", "--engine", "openvino") == "loaded []"


def test_openvino_beside_dla_is_whole(tmp_path: Path) -> None:
    code = "import dla; dla.load().predict({!r}); from openvino.tools.ovc import telemetry_stub; print(telemetry_stub)"
    done = subprocess.run([sys.executable, "-c", code.format(str(COFFEE))], capture_output=True, text=True)
    assert "telemetry_stub" in done.stdout, done.stderr


def test_a_folder_of_ones_own_needs_torch_only_once(tmp_path: Path) -> None:
    net = build("dla46x_c", num_classes=2)
    cfg = {"input_size": [3, 64, 64]}
    write_folder(tmp_path / "m", net.state_dict(), ModelConfig("dla46x_c", 2, pretrained_cfg=cfg))
    predict = ("-m", "dla", "predict", str(COFFEE), "--model", "m", "-o", "out.jsonl", "--force")
    assert "torch" in watched(tmp_path, *predict)
    first = (tmp_path / "out.jsonl").read_text()
    assert watched(tmp_path, *predict) == "loaded []"
    assert (tmp_path / "out.jsonl").read_text() == first


def test_dense_networks_need_torch_only_once(tmp_path: Path) -> None:
    write_dense(tmp_path / "m", ["road", "sky"])
    words = ("-m", "dla", "segment", str(COFFEE), "--model", "m", "-o", "out", "--force")
    assert "torch" in watched(tmp_path, *words)
    assert watched(tmp_path, *words) == "loaded []"


def test_what_was_opened_before_is_told_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run begun where PyTorch read the weights goes on where nobody did: the config is the same to the letter."""
    net = build("dla46x_c", num_classes=2)
    write_folder(tmp_path / "m", net.state_dict(), ModelConfig("dla46x_c", 2, label_names=("a", "b")))
    by_torch, known = (dla.load(str(tmp_path / "m")) for _ in range(2))
    assert known.config.to_json() == by_torch.config.to_json()
    assert (known.origin, known.sha256, known.preprocessing) == (
        by_torch.origin,
        by_torch.sha256,
        by_torch.preprocessing,
    )
    assert known.classes == by_torch.classes
    out = tmp_path / "out.jsonl"
    words = ["predict", "--model", str(tmp_path / "m"), "-o", str(out), "-q"]
    assert main([*words, str(CHELSEA)]) == 0
    assert main([*words, str(CHELSEA), str(COFFEE), "--resume"]) == 0
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("name", shipped_names())
def test_the_steps_that_come_along_are_those_of_the_weights(name: str) -> None:
    """Stale? Run: python tools/ops.py"""
    path = shipped(name) / OPS
    assert path.read_text(encoding="utf-8") == shipped_ops(f"shipped:{name}"), "stale: run python tools/ops.py"
    assert path.stat().st_size < 30_000  # the wheel grows by no more


def test_the_first_photos_of_two_threads_at_once_are_both_answered():
    """In int8, where nothing before them has shown NumPy to OpenVINO; they waited for ever."""
    code = (
        "import threading, numpy, dla\n"
        "engine = dla.load(engine='openvino', precision='int8', photos=100).engine\n"
        "photos, together, found = numpy.zeros((4, 96, 96, 3), numpy.uint8), threading.Barrier(2), []\n"
        "def answer():\n"
        "    together.wait()\n"
        "    found.append(len(engine.probabilities(photos)))\n"
        "threads = [threading.Thread(target=answer) for _ in range(2)]\n"
        "for each in threads: each.start()\n"
        "for each in threads: each.join()\n"
        "print(found)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout == "[4, 4]\n", done.stderr
