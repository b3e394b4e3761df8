"""What a process holds beyond what it uses."""

from __future__ import annotations

import ctypes

__all__ = ["give_memory_back"]

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
SMALLEST_MAP = 16 * 2**20


def give_memory_back() -> bool:
    """Let this process give each freed piece of memory of 16 MiB and more back to the system at once.

    glibc keeps freed pieces of up to 32 MiB, and with gradient checkpointing many of a step's maps are of that kind: a
    good part of the peak would be memory that nothing uses. A lower limit saves more memory and costs more time
    (docs/results.md). False where the C library has no such setting.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALLEST_MAP))
    except (AttributeError, OSError, TypeError):
        return False
