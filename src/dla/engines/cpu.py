"""The hardware of this machine: cores, memory, and the instruction sets that engines choose their arithmetic by."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path

from dla.errors import UsageError
from dla.options import cores

# The instruction sets that multiply numbers of each type: on x86 either of the first two, on ARM the third. Without
# one, the CPU converts the numbers, which is slower than fp32. The names are those of /proc/cpuinfo.
HALF_PRECISION = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "asimdhp")}
_AVX2 = frozenset(("sse4_1", "avx", "avx2", "fma"))
_OF_INTEREST = _AVX2.union(
    ("avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve"), *HALF_PRECISION.values()
)
_LIMITS = {  # what ONEDNN_MAX_CPU_ISA allows oneDNN, the library that PyTorch and OpenVINO compute with
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
    """Return the CPU's relevant instruction sets, sorted; empty where the system does not list them (not Linux).

    The environment variable ONEDNN_MAX_CPU_ISA limits them.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    listed = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    allowed = _LIMITS.get(os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper(), _OF_INTEREST)
    return tuple(sorted(allowed.intersection(_OF_INTEREST, listed.partition(":")[2].split())))


def machine() -> str:
    """Describe the machine in one line, such as "x86_64 avx avx2 fma sse4_1, 2 cores".

    Machines that choose the same arithmetic share the line.
    """
    return f"{platform.machine()} {' '.join(instructions())}, {cores()} cores"


def has_half_precision(name: str) -> bool:
    """Return whether the CPU has an instruction that multiplies "bf16" or "fp16" numbers."""
    return not set(HALF_PRECISION[name]).isdisjoint(instructions())


def has_bf16() -> bool:
    """Return whether the CPU has an instruction that multiplies bf16 numbers."""
    return has_half_precision("bf16")


def has_gpu() -> bool:
    """Return whether PyTorch probably has a GPU to compute on, without importing it, which would take seconds."""
    if "torch" in sys.modules:
        return bool(sys.modules["torch"].cuda.is_available())
    has_driver = any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd"))
    return has_driver and not version("torch").endswith("+cpu")  # the version suffix of PyTorch's CPU-only builds


def peak_memory() -> int | None:
    """Return the peak memory of this process so far, in bytes; None where the system does not report it (Windows)."""
    try:
        # ru_maxrss starts from the value of the parent process
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
    """Build the error for bf16 on a CPU that has no instruction for it."""
    return UsageError(
        "this CPU has no instruction for bf16, and without one it is slower than fp32. Try --precision fp32"
    )
