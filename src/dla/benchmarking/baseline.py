"""What a benchmark is compared with, timm's own network, eager in float32; and what disturbs it, background load."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

from dla.errors import UnavailableError, UsageError
from dla.types import Array

__all__ = ["TIMM", "BackgroundLoad", "check_timm", "run_timm"]


TIMM = "timm"
_BLOCKS = {"basic": "DlaBasic", "bottleneck": "DlaBottleneck", "bottleneck_x": "DlaBottleneck",
           "bottle2neck": "DlaBottle2neck"}  # fmt: skip


def check_timm() -> None:
    """Raise an UnavailableError where timm is not installed."""
    if find_spec("timm") is None:
        raise UnavailableError("timm is not installed, so nothing can be compared with it: pip install timm")


def run_timm(source: str, pixels_NHW3: Array, threads: int | None) -> Callable[[], Any]:
    """One call of timm's network on these pixels, normalised beforehand; None threads are PyTorch's own choice.

    Raises:
        UsageError: timm's network has no such option, or takes other weights.
        UnavailableError: timm is not here, or does not load.
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
        given = ", ".join(f"{name} {value}" for name, value in options.items() if name != "num_classes")
        raise UsageError(f"timm has no {architecture} with {given}") from None


def _import() -> Any:
    """timm's module of these networks."""
    check_timm()
    import torch

    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        # It does not load beside every CPU-only torch. All that timm needs is that these two operators have names.
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        from timm.models import dla
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(
            f"timm is here but does not load ({error}). Try: pip install --force-reinstall timm"
        ) from None
    return dla


_NOT_WORK = ("idle", "iowait", "steal", "guest", "guest_nice")  # of psutil's words; a guest's time is its host's, too


class BackgroundLoad:
    """The work of all processes but this one and those that it starts, from now on.

    Raises:
        UnavailableError: psutil is not installed.
    """

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), sum(_busy()), _own()

    def cores(self) -> float:
        """How many cores it kept busy so far, on average. The processes that this one started have ended."""
        seconds = time.perf_counter() - self.began
        return max(0.0, sum(_busy()) - self.busy - (_own() - self.own)) / seconds


def _busy() -> Iterator[float]:
    """Working seconds of each core that this process may use."""
    try:
        import psutil
    except ImportError:
        raise UnavailableError(
            "whether the machine is busy is seen by psutil, which is missing: pip install psutil"
        ) from None
    each = psutil.cpu_times(percpu=True)
    may_use = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(each))
    for core in may_use:
        yield sum(value for name, value in each[core]._asdict().items() if name not in _NOT_WORK)


def _own() -> float:
    return sum(os.times()[:4])
