"""What is freed is given back, measured from outside."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
import torch
from dla.training.memory import give_memory_back

def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

done = give_memory_back() if sys.argv[1] == "give" else True
torch.ones(31 * 2**18).sum()                        # glibc learns from the first big piece that is freed
before = held()
pairs = [(torch.ones(5 * 2**20), torch.ones(2**16)) for _ in range(20)]  # 20 MiB, and a little that stays, in turns
full = held()
pairs = [little for _, little in pairs]
print(done, full - before, held() - before)
"""


def run(word: str) -> list[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, word], check=True, capture_output=True, text=True
    ).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a process holds")
def test_what_is_freed_goes_back() -> None:
    done, full, after = run("give")
    assert done == "True"
    assert int(full) > 350 * 2**20
    assert int(after) < 20 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what a process holds")
def test_without_it_the_c_library_keeps_what_is_freed() -> None:
    _, full, after = run("keep")
    assert int(full) > 350 * 2**20
    assert int(after) > 150 * 2**20
