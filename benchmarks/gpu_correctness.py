"""The part `correctness` of `gpu.py`: all twelve networks compared with timm's, and the tests marked `gpu`."""

from __future__ import annotations

import copy
import re
import sys
import time

import torch
from gpu_networks import differences, pair
from gpu_record import ROOT, Child, Here, Record, numbers

import dla

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
RESULT = re.compile(r"^(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def correctness(here: Here, record: Record, models: tuple[str, ...]) -> None:
    """Measure the table of differences, then run the tests."""
    with numbers(repeatable=True):
        for name in models or dla.list_models(pretrained=True):
            record.row(f"{name}, parity", lambda name=name: _parity(here, name), needs=2)
    _tests(here, record)


def _parity(here: Here, name: str) -> dict[str, dict[str, float]]:
    """Return the largest differences over the largest value, by dtype and kind of tensor; TF32 is off."""
    h, w = (64, 64) if here.rehearsal else (64, 96)
    found = {}
    for kind, dtype in TYPES.items():
        if here.rehearsal and kind == "bf16":
            continue
        ours, theirs = (copy.deepcopy(net).to(here.device, dtype) for net in pair(name))
        x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(1)).to(here.device, dtype)
        found[kind] = differences(ours, theirs, x)
    return found


def _tests(here: Here, record: Record) -> None:
    """Run the tests, one row each; the whole output is next to the JSON. Tests that compile come last."""
    if record.left() < 10:
        record.leave_out("tests", "out of time")
        return
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"), key=lambda file: ("compiled" in file.name, file.name))
    # warnings of packages in other versions than the suite's are no failures of ours
    words = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
    log = record.file.with_name("tests.log")
    child = Child([*words, *map(str, files)], log)
    with log.open(encoding="utf-8", errors="replace") as lines:
        while (runs := child.runs) and record.left() > 0:
            _tell(lines.readlines(), record)
            time.sleep(0.2)
        child.kill()
        _tell(lines.readlines(), record)
    if runs:
        record.leave_out("the other tests", "out of time")
    else:
        record.add("tests", exit_code=child.process.returncode)


def _tell(lines: list[str], record: Record) -> None:
    for line in lines:
        if found := RESULT.match(line):
            record.add(found[1], outcome=found[2].lower())
