"""Return freed memory to the system, and report when memory runs out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dla.errors import DlaError
from dla.training.recipe import Recipe

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
SMALLEST_MAP = 16 * 2**20


def give_memory_back() -> bool:
    """Make the C library return freed blocks of 16 MiB and more to the system at once; return whether it can.

    glibc keeps freed blocks of up to 32 MiB, and with gradient checkpointing many feature maps have such a size, so
    that much of the peak would be unused memory. A lower threshold saves more memory and costs more time
    (docs/results.md).
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALLEST_MAP))
    except (AttributeError, OSError, TypeError):
        return False


@contextmanager
def enough_memory(recipe: Recipe) -> Iterator[None]:
    """Turn an out-of-memory error into a message that names the settings that need less.

    Raises:
        DlaError: the machine or the GPU ran out of memory.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _out_of_memory(recipe) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
            raise
        raise _out_of_memory(recipe) from error


def _out_of_memory(recipe: Recipe) -> DlaError:
    sides = recipe.input.all_sizes()
    at = f" at {max(sides)} pixels" if sides else ""
    return DlaError(
        f"not enough memory for batches of {recipe.batch_size} photos{at}. Try --optimizer.accumulate 2 (or more), "
        "--compute.checkpointing true, a smaller --batch-size, or smaller crops. Saved checkpoints are kept"
    )
