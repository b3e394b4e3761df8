"""The engine that runs networks in PyTorch: batch-norm folded into the convolutions, channels_last, inference mode.

On an NVIDIA GPU, pixels are copied from pinned memory, CUDA graphs save the launch of some hundred small kernels, and
for many photos the network is compiled instead.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock

import torch
from torch import Tensor, nn

from dla.engines.base import Engine
from dla.engines.cpu import bf16_error, has_bf16
from dla.engines.cuda_graph import CudaGraphs
from dla.errors import UsageError
from dla.models.fuse import fuse_conv_bn
from dla.models.nodes import tap, truncate
from dla.models.normalize import Normalize
from dla.options import Precision
from dla.types import Array

COMPILED_FROM = 10_000  # photos


class TorchEngine(Engine):
    """Run `model`, in evaluation mode, on `device`. Its input is pixels * scale + shift.

    `threads` is the number of compute threads, by default PyTorch's own setting; `photos` the expected number of
    photos, if known.

    Raises:
        UsageError: bf16 on a CPU that has no instruction for it, or a device that is not available.
    """

    def __init__(
        self,
        model: nn.Module,
        scale_3: Array,
        shift_3: Array,
        device: str = "auto",
        precision: Precision = "fp32",
        threads: int | None = None,
        photos: int | None = None,
    ) -> None:
        self.device, self.threads = pick_device(device), threads
        self.name = f"PyTorch on {self.device}" + ("" if precision == "fp32" else f" in {precision}")
        self.compiles = worth_compiling(self.device, photos)
        self.compiled: dict[nn.Module, _CompiledTorch] = {}
        self.graphs = CudaGraphs(self.device) if self.device.type == "cuda" and not self.compiles else None
        if precision == "bf16" and self.device.type == "cpu" and not has_bf16():
            raise bf16_error()
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        folded = fuse_conv_bn(model).to(device=self.device, dtype=self.dtype)
        self.network = folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.truncated: dict[str, nn.Module] = {}  # parts of the network, which share its weights
        self.tapped: dict[tuple[str, ...], nn.Module] = {}
        self.normalize = Normalize(scale_3, shift_3).to(self.device)

    def own_process(self) -> None:
        """Have the allocator keep freed memory for the next batch."""
        _keep_freed_memory()

    def classifier(self) -> tuple[Array, Array]:  # noqa: D102
        fc = self.network.get_submodule("fc")
        weight, bias = (fc.get_parameter(part).detach().float().cpu().numpy() for part in ("weight", "bias"))
        return weight[:, :, 0, 0], bias

    def tap(self, names: tuple[str, ...], pixels_NHW3: Array) -> tuple[Tensor, ...]:
        """Return the maps at feature nodes, (N, C, H, W) each, and the logits (N, K), on the engine's device.

        Where gradients are enabled, they can be taken of the logits with respect to the maps.

        Raises:
            UnknownNameError: the network has no such node.
        """
        if names not in self.tapped:
            self.tapped[names] = tap(self.network, names)
        x: Tensor = self.normalize(torch.from_numpy(pixels_NHW3).to(self.device)).to(self.dtype)
        with _threads(self.threads), _without_tf32:
            return self.tapped[names](x.requires_grad_(torch.is_grad_enabled()))  # type: ignore[no-any-return]

    def _check_node(self, at: str) -> None:
        if at not in self.truncated:
            self.truncated[at] = truncate(self.network, at)

    @torch.inference_mode()
    def _run(self, at: str | None, pixels_NHW3: Array) -> Array:
        if _forked and self.device.type != "cpu":
            raise UsageError(
                f"a process that was forked cannot use the device {self.device}. Start processes with "
                "multiprocessing's spawn, or use the device cpu"
            )
        part, pixels = self.network if at is None else self.truncated[at], torch.from_numpy(pixels_NHW3)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        if self.graphs is not None:
            result = self.graphs.run(part, partial(self._compute, part), pixels)
        else:
            result = self._compute(part, pixels.to(self.device, non_blocking=True))
        return (result.softmax(1) if at is None else result.contiguous()).cpu().numpy()

    def _compute(self, part: nn.Module, pixels_NHW3: Tensor) -> Tensor:
        x: Tensor = self.normalize(pixels_NHW3).to(self.dtype)
        if self.compiles and part not in self.compiled:
            self.compiled[part] = _CompiledTorch(part, x.shape)
        run = self.compiled.get(part, part)
        with _threads(self.threads), _without_tf32:
            return run(x).float()


class _CompiledTorch:
    """Part of a network, compiled for the first batch's shape; other shapes, as of the last batch, run uncompiled."""

    def __init__(self, part: nn.Module, shape: torch.Size) -> None:
        self.part, self.shape = part, shape
        self.fast: Callable[[Tensor], Tensor] | None = torch.compile(part, mode="reduce-overhead", dynamic=False)

    def __call__(self, x_N3HW: Tensor) -> Tensor:
        if self.fast is not None and x_N3HW.shape == self.shape:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # TF32 is off on purpose
                    return self.fast(x_N3HW)
            except RuntimeError as error:
                from torch._dynamo.exc import TorchDynamoException  # slow to import, but already loaded here

                if not isinstance(error, TorchDynamoException):
                    raise
                self.fast = None  # no compiler installed, or an unsupported GPU: run uncompiled
        return self.part(x_N3HW)  # type: ignore[no-any-return]


def worth_compiling(device: torch.device, photos: int | None) -> bool:
    """Return whether compiling, which takes a minute, pays off: on an NVIDIA GPU, from 10,000 photos on."""
    return device.type == "cuda" and photos is not None and photos >= COMPILED_FROM


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" prefers CUDA, then Apple's GPU (mps), then the CPU.

    Raises:
        UsageError: the device is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the device {name!r} cannot be used here ({reason}). Try --device cpu") from None
    return device


class _WithoutTf32:
    """A context in which cuDNN multiplies in full fp32, instead of rounding to TF32's 10 bits, its default.

    The flag is global to the process: the first of several threads turns TF32 off and the last one restores it.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.backends.cudnn.allow_tf32 = self.before


_without_tf32 = _WithoutTf32()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set PyTorch's number of threads, which is global to the process, and restore it afterwards."""
    before = torch.get_num_threads()
    if count in (None, before) or _forked:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_forked = False


def _one_thread_after_fork() -> None:
    """Compute with one thread in a forked child, as PyTorch's own data loaders do: OpenMP's other threads are gone."""
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread_after_fork)


def _keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next batch; otherwise page faults cost 10 to 30 % of the time.

    The setting is global to the process. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_max = -1, -4
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
