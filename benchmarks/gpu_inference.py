"""The part `inference` of `gpu.py`: networks on tensors in GPU memory, photos from the host, and start-up."""

from __future__ import annotations

import contextlib
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import captured, flops, model_folder, pair
from gpu_record import Child, Here, Record, SkippedError, compared, in_turns, numbers
from PIL import Image
from torch import Tensor, nn

import dla

MODELS = ("dla34", "dla60", "dla102")
SIDE, BATCHES = 224, (1, 8, 64)
TURN_S, ROUNDS = 0.04, 7
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# what runs in which type and layout, and whether it is captured
SETTINGS = {
    "fp32": ("fp32", torch.contiguous_format, False),
    "bf16 channels_last": ("bf16", torch.channels_last, False),
    "bf16 channels_last, CUDA graph": ("bf16", torch.channels_last, True),
    "fp32 channels_last, CUDA graph": ("fp32", torch.channels_last, True),
}
THEIRS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from PIL import Image
from safetensors.torch import load_file
from support.oracle import timm
network = timm.create_model({name!r}).eval()
network.load_state_dict(load_file({folder!r} + "/model.safetensors"))
network = network.to({device!r})
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=network))
with torch.inference_mode():
    x = transform(Image.open({photo!r}).convert("RGB"))[None].to({device!r})
    print(network(x).softmax(1).topk(5)[1].tolist())
"""
OURS = """
import dla
print([c.index for c in dla.load({folder!r}, device={device!r}).predict({photo!r}).classes])
"""


def inference(here: Here, record: Record, models: tuple[str, ...]) -> None:
    """Measure all rows, the most important ones first."""
    side, batches = (64, (1, 2)) if here.rehearsal else (SIDE, BATCHES)
    peaks: dict[str, float] = {}
    record.row("peak", lambda: _peak(here, peaks))
    with torch.inference_mode(), numbers():
        for name in models:
            nets = _Networks(here, name, side)
            for setting in SETTINGS:
                for batch in batches:
                    title = f"{name}, {setting}, batch {batch}"
                    record.row(title, partial(nets.row, setting, batch, peaks), needs=6)
            for precision in TYPES:
                for batch in batches:
                    title = f"{name}, {precision}, photos from the host, batch {batch}"
                    record.row(title, partial(nets.from_host, precision, batch), needs=6)
            nets.clear()
    record.row(f"{models[0]}, first answer", lambda: _first_answer(here, record, models[0], side), needs=15)
    for batch in (64, 1):
        name = f"{models[0]}, bf16 channels_last, compiled, batch {batch}"
        record.row(name, partial(_compiled, here, record, models[0], batch), needs=30)


def _peak(here: Here, peaks: dict[str, float]) -> dict[str, Any]:
    """Return the GPU's peak: operations per second of a large matrix product of random numbers."""
    n, times = (256, 3) if here.rehearsal else (8192, 10)
    for name, dtype in TYPES.items():
        with numbers():
            a, b = (torch.randn(n, n, device=here.device, dtype=dtype) for _ in range(2))
            each = in_turns(here, {"product": partial(torch.mm, a, b)}, 0.0, times)["product"]
        peaks[name] = 2 * n**3 / statistics.median(each)
    return {"tflops": {name: peak / 1e12 for name, peak in peaks.items()}, "side": n}


class _Networks:
    """One network of timm and of dla, and as `dla.load` opens it, in every requested dtype and layout."""

    def __init__(self, here: Here, name: str, side: int) -> None:
        self.here, self.name, self.side = here, name, side
        self.cast: dict[Any, dict[str, nn.Module]] = {}

    @cached_property
    def flops(self) -> int:
        return flops(pair(self.name)[0], self.side)

    @cached_property
    def folder(self) -> Path:
        return model_folder(pair(self.name)[0], self.name, self.side, self.here.room / self.name)

    def clear(self) -> None:
        self.cast.clear()
        if not self.here.rehearsal:
            torch.cuda.empty_cache()

    def arms(self, precision: str, layout: torch.memory_format) -> dict[str, nn.Module]:
        if (key := (precision, layout)) not in self.cast:
            self.clear()
            how = {"device": self.here.device, "dtype": TYPES[precision], "memory_format": layout}
            ours, theirs = (copy.deepcopy(net).to(**how) for net in pair(self.name))
            arms = {"timm": theirs, "dla": ours}
            if layout is torch.channels_last:  # as dla.load lays it out, batch-norm folded
                arms["dla.load's"] = self.load(precision).engine.network
            self.cast[key] = arms
        return self.cast[key]

    def load(self, precision: str) -> dla.Classifier:
        if self.here.rehearsal and precision == "bf16":
            raise SkippedError("needs a GPU")
        return dla.load(str(self.folder), device=self.here.device, engine="torch", precision=precision)

    def row(self, setting: str, batch: int, peaks: dict[str, float]) -> dict[str, Any]:
        precision, layout, as_graph = SETTINGS[setting]
        x = _photos(self.here, batch, self.side).to(TYPES[precision], memory_format=layout)
        calls: dict[str, Callable[[], Tensor]] = {
            arm: partial(net, x) for arm, net in self.arms(precision, layout).items()
        }
        outcomes = {arm: call().float() for arm, call in calls.items()}
        if as_graph:
            calls = {arm: captured(self.here, net, x) for arm, net in self.arms(precision, layout).items()}
        times = in_turns(self.here, calls, TURN_S, ROUNDS)
        found = compared(times)
        found["of peak"] = {arm: round(self.flops * batch / statistics.median(each) / peaks[precision], 4)
                            for arm, each in times.items()}  # fmt: skip
        found["differs from timm"] = {
            arm: _relative(y, outcomes["timm"]) for arm, y in outcomes.items() if arm != "timm"
        }
        if as_graph:
            found["differs from timm"] |= {f"{arm} captured": _relative(call().float(), outcomes["timm"])
                                           for arm, call in calls.items()}  # fmt: skip
        return found

    def from_host(self, precision: str, batch: int) -> dict[str, Any]:
        """uint8 pixels in ordinary memory -> probabilities there."""
        here, dtype = self.here, TYPES[precision]
        pixels = np.random.default_rng(batch).integers(0, 256, (batch, self.side, self.side, 3), np.uint8)
        loaded = self.load(precision)
        network = self.arms(precision, torch.channels_last)["timm"]
        scale, shift = (torch.from_numpy(a).to(here.device)[:, None, None] for a in loaded.preprocessing.scale_shift())

        def theirs(raw: Tensor) -> Tensor:
            x = raw.permute(0, 3, 1, 2).float().mul_(scale).add_(shift)
            return network(x.to(dtype)).float().softmax(1)

        def ready() -> Tensor:
            raw = torch.from_numpy(pixels)
            return raw if here.rehearsal else raw.pin_memory()

        calls: dict[str, Callable[[], Any]] = {
            "timm": lambda: theirs(ready().to(here.device, non_blocking=True)).cpu().numpy(),
            "dla.load": lambda: loaded.probabilities(pixels),
        }
        with contextlib.suppress(SkippedError):
            raw = ready().to(here.device)
            replay = captured(here, theirs, raw)
            calls["timm, CUDA graph by hand"] = lambda: (raw.copy_(ready(), non_blocking=True), replay().cpu().numpy())[
                1
            ]
        found = compared(in_turns(here, calls, TURN_S, ROUNDS))
        expected = calls["timm"]()
        found["differs from timm"] = float(np.abs(calls["dla.load"]() - expected).max())
        return found


def _photos(here: Here, batch: int, side: int) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch)).to(here.device)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _first_answer(here: Here, record: Record, name: str, side: int) -> dict[str, Any]:
    """Measure whole processes, from start to one photo's five classes, in alternation; the first round is a warm-up."""
    photo = here.room / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)).save(photo)
    words = {"tests": str(Path(__file__).parent.parent / "tests"), "name": name, "photo": str(photo),
             "folder": str(here.room / name), "device": here.device}  # fmt: skip
    model_folder(pair(name)[0], name, side, here.room / name)
    times: dict[str, list[float]] = {"timm": [], "dla.load": []}
    answers: dict[str, str] = {}
    for turn in range(2 if here.rehearsal else 3):
        for arm, script in (("timm", THEIRS), ("dla.load", OURS)):
            began, log = time.perf_counter(), here.room / f"{arm} {turn}.txt"
            code = Child([sys.executable, "-c", script.format(**words)], log).wait(record.left())
            if code:
                raise RuntimeError(f"{arm}: {log.read_text()[-1500:]}")
            answers[arm] = log.read_text().splitlines()[-1]
            if turn:
                times[arm].append(time.perf_counter() - began)
    return compared(times) | {"answers": answers}


def _compiled(here: Here, record: Record, name: str, batch: int) -> dict[str, Any]:
    """Run in a process of its own, which is killed if compiling takes too long."""
    if here.rehearsal:
        raise SkippedError("needs a GPU")
    log = record.file.with_name("compiled.log")
    script = str(Path(__file__).with_name("gpu.py"))
    code = Child([sys.executable, script, "--compiled", name, str(batch), str(here.room)], log).wait(record.left())
    if code:
        raise RuntimeError(log.read_text()[-1500:])
    found: dict[str, Any] = json.loads(log.read_text().splitlines()[-1])
    return found


def compile_and_time(name: str, batch: int, room: Path) -> dict[str, Any]:
    """Measure both networks, compiled as by `dla.load` for a large folder."""
    here, side = Here("cuda", room), SIDE
    nets = _Networks(here, name, side)
    with torch.inference_mode(), numbers():
        arms = nets.arms("bf16", torch.channels_last)
        x = _photos(here, batch, side).to(torch.bfloat16, memory_format=torch.channels_last)
        calls, seconds = {}, {}
        for arm in ("timm", "dla.load's"):
            began = time.perf_counter()
            fast = torch.compile(arms[arm], mode="reduce-overhead", dynamic=False)
            for _ in range(3):
                fast(x)
            here.wait()
            seconds[arm] = round(time.perf_counter() - began, 1)
            calls[arm] = partial(fast, x)
        return compared(in_turns(here, calls, TURN_S, ROUNDS)) | {"compiling_s": seconds}
