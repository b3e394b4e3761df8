"""The baseline of a benchmark, timm's own network in eager float32, and the measurement of background load."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from dla.errors import UnavailableError, UsageError, import_optional
from dla.types import Array

TIMM = "timm"
_BLOCKS = {"basic": "DlaBasic", "bottleneck": "DlaBottleneck", "bottleneck_x": "DlaBottleneck",
           "bottle2neck": "DlaBottle2neck"}  # fmt: skip


def check_timm() -> None:
    """Check that timm is installed.

    Raises:
        UnavailableError: it is not.
    """
    if find_spec("timm") is None:
        raise UnavailableError("timm is not installed, so nothing can be compared with it: pip install timm")


def run_timm(source: str, pixels_NHW3: Array, threads: int | None) -> Callable[[], Any]:
    """Return a function that runs timm's network on these pixels, uint8 (N, H, W, 3), normalized beforehand.

    `threads` None leaves the number to PyTorch.

    Raises:
        UsageError: timm's network does not have these options, or takes other weights.
        UnavailableError: timm is not installed, or its import fails.
    """
    import torch

    from dla.inference.traced_model import open_in_torch
    from dla.models.normalize import Normalize

    net, model = open_in_torch(source)
    with torch.device("meta"):
        timm_net = _network(
            model.config.architecture, {"num_classes": model.config.num_classes, **model.config.model_args}
        )
    try:
        timm_net.load_state_dict(net.state_dict(), assign=True)  # no second copy of the weights
    except RuntimeError as error:
        raise UsageError(f"timm's {model.config.architecture} takes other weights than {source}") from error
    if threads is not None:
        torch.set_num_threads(threads)
    x_N3HW = Normalize(*model.preprocessing.scale_shift())(torch.from_numpy(pixels_NHW3)).contiguous()
    timm_net.eval()

    @torch.inference_mode()
    def run() -> Any:
        return timm_net(x_N3HW).softmax(1).numpy()

    return run


def _network(architecture: str, options: dict[str, Any]) -> Any:
    from dla.models.registry import row

    r, timm_dla = row(architecture), _import()
    try:
        return timm_dla.DLA(r.depths, r.channels, block=getattr(timm_dla, _BLOCKS[r.block]), cardinality=r.cardinality,
                          base_width=r.base_width, shortcut_root=r.shortcut, **options)  # fmt: skip
    except (TypeError, AssertionError):
        listed = ", ".join(f"{name} {value}" for name, value in options.items() if name != "num_classes")
        raise UsageError(f"timm has no {architecture} with {listed}") from None


def _import() -> Any:
    """Import timm's module of these networks."""
    check_timm()
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        # Its import fails with some CPU-only builds of torch. timm only needs these two operators to exist.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        from timm.models import dla
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(
            f"timm is installed but cannot be imported ({error}). Try: pip install --force-reinstall timm"
        ) from None
    return dla


_NOT_WORK = ("idle", "iowait", "steal", "guest", "guest_nice")  # psutil's fields; user and nice include guest times


class BackgroundLoad:
    """Measure the CPU load of all processes except this one and its children, from now on.

    Raises:
        UnavailableError: psutil is not installed.
    """

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), sum(_busy()), _own()

    def cores(self) -> float:
        """Return how many cores were busy so far, on average. All child processes must have ended."""
        seconds = time.perf_counter() - self.began
        return max(0.0, sum(_busy()) - self.busy - (_own() - self.own)) / seconds


def _busy() -> Iterator[float]:
    """Yield the busy seconds of each core that this process may use."""
    message = "the background load is measured with psutil, which is not installed: pip install psutil"
    psutil = import_optional("psutil", message)
    times = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    for core in allowed:
        yield sum(value for name, value in times[core]._asdict().items() if name not in _NOT_WORK)


def _own() -> float:
    return sum(os.times()[:4])
