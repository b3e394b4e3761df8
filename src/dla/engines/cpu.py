"""What this machine computes with: cores, and the instructions that engines choose their arithmetic by."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from dla.errors import UsageError
from dla.options import cores

__all__ = [
    "HALF_PRECISION",
    "bf16_error",
    "has_bf16",
    "has_gpu",
    "has_half_precision",
    "instructions",
    "machine",
    "peak_memory",
]


# By what a CPU multiplies such numbers: x86 with either of the first two, ARM. Without one it converts them, slower
# than fp32. The names are those of /proc/cpuinfo.
HALF_PRECISION = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "asimdhp")}
_OF_INTEREST = frozenset(name for names in HALF_PRECISION.values() for name in names).union(
    (
        "sse4_1",
        "avx",
        "avx2",
        "fma",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "amx_int8",
        "asimd",
        "asimddp",
        "i8mm",
        "sve",
    )
)
_AVX2 = frozenset(("sse4_1", "avx", "avx2", "fma"))
_LIMITS = {  # what a user leaves oneDNN by ONEDNN_MAX_CPU_ISA, on which PyTorch and OpenVINO compute
    "SSE41": frozenset(("sse4_1",)),
    "AVX": frozenset(("sse4_1", "avx")),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2 | {"avx_vnni"},
    "AVX512_CORE": _AVX2 | {"avx512f"},
    "AVX512_CORE_VNNI": _AVX2 | {"avx512f", "avx512_vnni"},
    "AVX512_CORE_BF16": _AVX2 | {"avx512f", "avx512_vnni", "avx512_bf16"},
}


@cache
def instructions() -> tuple[str, ...]:
    """Those of the CPU's instruction sets that matter here, sorted; none where the system does not say (not Linux).

    Without those that the variable ONEDNN_MAX_CPU_ISA withholds.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    left = _LIMITS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), _OF_INTEREST)
    return tuple(sorted(left.intersection(_OF_INTEREST, listed.partition(":")[2].split())))


def machine() -> str:
    """One line that two machines share if they choose the same arithmetic: "x86_64 avx avx2 fma sse4_1, 2 cores"."""
    return f"{platform.machine()} {' '.join(instructions())}, {cores()} cores"


def has_half_precision(name: str) -> bool:
    """Whether the CPU has an instruction that multiplies "bf16" or "fp16" numbers."""
    return not set(HALF_PRECISION[name]).isdisjoint(instructions())


def has_bf16() -> bool:
    """Whether the CPU has an instruction that multiplies bf16 numbers."""
    return has_half_precision("bf16")


def has_gpu() -> bool:
    """Whether there seems to be one that PyTorch computes on; asking PyTorch itself would take seconds."""
    if "torch" in sys.modules:
        return bool(sys.modules["torch"].cuda.is_available())
    driven = any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd"))
    return driven and not version("torch").endswith("+cpu")  # PyTorch's own name for a build that knows no GPU


def peak_memory() -> int | None:
    """The most memory in bytes that this process has had so far; None where the system does not say (Windows)."""
    try:
        # the other figure begins with that of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def bf16_error() -> UsageError:
    """What to say where bf16 is asked for and the CPU has no instruction for it."""
    return UsageError(
        "this CPU has no instruction for bf16, and without one it is slower than fp32. Try --precision fp32"
    )
