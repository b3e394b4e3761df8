"""Build timm's and dla's networks with the same weights, and capture a call of either in a CUDA graph."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from gpu_record import Here, SkippedError
from torch import Tensor, nn

import dla

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.oracle import differences as differences
from support.oracle import randomise
from support.oracle import timm as timm


@lru_cache(maxsize=1)
def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Return dla's and timm's network: on the CPU, in evaluation mode, with equal weights and random statistics."""
    torch.manual_seed(0)
    ours, theirs = dla.create_model(name), timm.create_model(name, pretrained=False)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval(), theirs.eval()


def model_folder(ours: nn.Module, name: str, side: int, folder: Path) -> Path:
    """Write a network as a model folder for `dla.load`, for photos of `side` pixels."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in ours.state_dict().items()}, folder / "model.safetensors")
    config: dict[str, Any] = {"architecture": name, "num_classes": 1000,
                              "pretrained_cfg": {"input_size": [3, side, side]}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flops(network: nn.Module, side: int) -> int:
    """Return the operations per photo in evaluation mode; a multiply-accumulate counts as two."""
    from torch.utils.flop_counter import FlopCounterMode

    like = next(network.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, side, side, dtype=like.dtype, device=like.device))
    return int(counter.get_total_flops())


def captured(here: Here, network: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    """Return a function that replays `network(x)` on the current contents of x."""
    if here.rehearsal:
        raise SkippedError("needs a GPU")
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(x)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        result = network(x)

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
