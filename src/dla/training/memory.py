"""What a process holds beyond what it uses, and what to say when there is no more."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dla.errors import DlaError
from dla.training.recipe import Recipe

__all__ = ["enough_memory", "give_memory_back"]


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


@contextmanager
def enough_memory(recipe: Recipe) -> Iterator[None]:
    """Where it is not, say which settings take less.

    Raises:
        DlaError: the memory of the machine or of the GPU was not enough.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_much(recipe) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _too_much(recipe) from error


def _too_much(recipe: Recipe) -> DlaError:
    sides = recipe.input.all_sizes()
    at = f" at {max(sides)} pixels" if sides else ""
    return DlaError(
        f"there is not enough memory for steps of {recipe.batch_size} photos{at}. Try --optimizer.accumulate 2 (or "
        "more), --compute.checkpointing true, a smaller --batch-size, or smaller crops. What was saved is kept"
    )
