"""The part `training` of `gpu.py`: steps and memory compared with timm, and a killed and resumed `dla train`."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_networks import flops, pair
from gpu_record import Child, Here, Record, SkippedError, compared, in_turns, numbers
from PIL import Image
from torch import nn

from support.ends import differing, ended_in

MODELS = ("dla34", "dla60")
SIDE, BATCH = 224, 64
TURN_S, ROUNDS = 0.2, 5
# whether convolutions are autocast to bf16, and the layout
SETTINGS = {
    "fp32": (False, torch.contiguous_format),
    "bf16 autocast": (True, torch.contiguous_format),
    "bf16 autocast, channels_last": (True, torch.channels_last),
    "fp32, channels_last": (False, torch.channels_last),
}
RUNS = {
    "fp32": [],
    "bf16, mixed, averaged": ["--compute.autocast", "bf16", "--augment.mixup", "0.4", "--augment.brightness", "0.3",
                              "--average.decay", "0.9", "--optimizer.name", "adamw", "--lr", "0.002"],
}  # fmt: skip


def training(here: Here, record: Record, models: tuple[str, ...]) -> None:
    """Measure the killed run first, as it is the most important, then steps and memory."""
    for name, words in RUNS.items():
        record.row(f"dla train, killed and resumed, {name}", partial(_kill, here, record, name, words), needs=45)
        if name == "fp32":
            _steps(here, record, models)


def _steps(here: Here, record: Record, models: tuple[str, ...]) -> None:
    batch, side = (2, 64) if here.rehearsal else (BATCH, SIDE)
    for name in models:
        for setting in SETTINGS:
            record.row(f"{name}, a step, {setting}, batch {batch}",
                       partial(_step_row, here, name, setting, batch, side), needs=8)  # fmt: skip
        for setting in ("fp32", "bf16 autocast, channels_last"):
            record.row(f"{name}, peak memory, {setting}, batch {batch}",
                       partial(_memory_row, here, name, setting, batch, side), needs=6)  # fmt: skip


class _Stepper:
    """Forward, cross-entropy, backward and SGD with momentum, on one random batch."""

    def __init__(self, here: Here, network: nn.Module, setting: str, batch: int, side: int) -> None:
        self.bf16, layout = SETTINGS[setting]
        self.device = here.device
        self.network = copy.deepcopy(network).to(device=here.device, memory_format=layout).train()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(batch, 3, side, side, generator=generator).to(here.device, memory_format=layout)
        self.y = torch.randint(1000, (batch,), generator=generator).to(here.device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.001, momentum=0.9, fused=True)
        self.repeatable = False

    def __call__(self) -> torch.Tensor:
        with numbers(repeatable=self.repeatable):
            self.optimizer.zero_grad()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(self.network(self.x).float(), self.y)
            loss.backward()
            self.optimizer.step()
        return loss.detach()


def _check(here: Here, setting: str) -> None:
    if here.rehearsal and SETTINGS[setting][0]:
        raise SkippedError("needs a GPU")


def _step_row(here: Here, name: str, setting: str, batch: int, side: int) -> dict[str, Any]:
    """Measure the steps of both, and of dla with cuDNN's deterministic algorithms, as in `dla train`. TF32 is off."""
    _check(here, setting)
    ours, theirs = pair(name)
    arms = {arm: _Stepper(here, net, setting, batch, side)
            for arm, net in (("timm", theirs), ("dla", ours), ("dla, repeatable", ours))}  # fmt: skip
    arms["dla, repeatable"].repeatable = True
    losses = {arm: float(step()) for arm, step in arms.items()}
    times = in_turns(here, dict(arms), TURN_S, ROUNDS)
    work = 3 * flops(ours, side) * batch
    rates = {arm: round(work / statistics.median(each) / 1e12, 3) for arm, each in times.items()}
    return compared(times) | {"first loss": losses, "tflops": rates}


def _memory_row(here: Here, name: str, setting: str, batch: int, side: int) -> dict[str, Any]:
    """Measure the peak memory of a step beyond weights, gradients, momentum and batch (MiB), and checkpointing."""
    if here.rehearsal:
        raise SkippedError("needs a GPU")
    ours, theirs = pair(name)
    saving = copy.deepcopy(ours)
    saving.set_grad_checkpointing()
    peaks, seconds = {}, {}
    for arm, net in (("timm", theirs), ("dla", ours), ("dla, checkpointing", saving)):
        step = _Stepper(here, net, setting, batch, side)
        for _ in range(2):
            step()
        here.wait()
        floor = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(3):
            step()
        here.wait()
        seconds[arm] = round(1000 * (time.perf_counter() - began) / 3, 1)
        peaks[arm] = round((torch.cuda.max_memory_allocated() - floor) / 2**20)
        del step
        torch.cuda.empty_cache()
    return {"peak_mib": peaks, "ms": seconds}


def _kill(here: Here, record: Record, name: str, words: list[str]) -> dict[str, Any]:
    """Check that two uninterrupted runs and one that is killed and resumed end bitwise equal."""
    if here.rehearsal and "bf16" in name:
        raise SkippedError("needs a GPU")
    photos = _photos(here.room / "photos", 2 if here.rehearsal else 16)
    runs = {run: _Train(here, photos, here.room / f"{name} {run}", words, record.file.with_name("train.log"))
            for run in ("whole", "again", "killed")}  # fmt: skip
    began = time.monotonic()
    try:
        for run in runs.values():
            run.start()
        step = runs["killed"].kill_at_step(3, record)
        runs["killed"].start()
        codes = {which: run.child.wait(record.left()) for which, run in runs.items()}
    finally:
        for run in runs.values():
            run.child.kill()
    if any(codes.values()):
        raise RuntimeError(f"exit codes {codes}: train.log")
    ends = {which: ended_in(run.folder) for which, run in runs.items()}
    return {
        "killed after step": step, "seconds": round(time.monotonic() - began, 1),
        "two whole runs differ in": differing(ends["whole"], ends["again"]) or "nothing",
        "killed and whole run differ in": differing(ends["whole"], ends["killed"]) or "nothing",
    }  # fmt: skip


class _Train:
    """A `dla train` in a process of its own, with its folder, and its output in train.log."""

    def __init__(self, here: Here, photos: Path, folder: Path, words: list[str], log: Path) -> None:
        self.folder, self.log = folder, log
        side, batch = ("32", "4") if here.rehearsal else ("96", "16")
        # fmt: off
        self.words = [
            sys.executable, "-m", "dla", "train", str(photos), "--model", "dla46_c", "--epochs", "3", "--lr", "0.02",
            "--batch-size", batch, "--input.sizes", f"{{0: {side}}}", "--input.val-size", side, "--save-every", "0",
            "--device", here.device, *words, "--output", str(folder),
        ]
        # fmt: on

    def start(self) -> None:
        self.child = Child(self.words, self.log)

    def kill_at_step(self, step: int, record: Record) -> int:
        """Send SIGKILL as soon as there is a checkpoint of that step or a later one; return its step."""
        while record.left() > 0 and self.child.runs:
            if (found := self.newest()) >= step:
                self.child.kill()
                return found
            time.sleep(0.005)
        raise RuntimeError("the run was over before it could be killed: train.log")

    def newest(self) -> int:
        places = self.folder / "checkpoints"
        names = [p.name for p in places.iterdir()] if places.is_dir() else []
        return max((int(n.split("-")[-1]) for n in names if n[:6].isdigit()), default=0)


def _photos(folder: Path, each: int) -> Path:
    """Write photos of four classes, noise around one colour per class, for training and for validation."""
    generator = np.random.default_rng(0)
    for split, count in (("train", each), ("val", max(1, each // 4))):
        for k in range(4):
            (folder / split / f"class {k}").mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (110, 130, 3)) + 60 * np.array([k & 1, k & 2, 1])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"class {k}" / f"{i}.png")
    return folder
