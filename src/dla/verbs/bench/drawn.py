"""Weights for networks that have none here: drawn, good for speed and nothing else."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dla.engines.int8 import quantise
from dla.errors import UnavailableError
from dla.images.prepare import Preprocessing
from dla.nets.build import build
from dla.verbs.forms import FILE
from dla.verbs.network import open_network
from dla.weights.folder import ModelConfig, write_folder

__all__ = ["add_int8", "write_drawn"]

PHOTOS, SIDE = 8, 128  # of noise


def write_drawn(architecture: str, folder: Path) -> None:
    """A model folder of that network with 1000 classes.

    Batch-norm has the statistics of noise, so that no layer's numbers vanish or overflow: a CPU is many times slower
    with numbers that are nearly zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(architecture).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the one batch
    pixels_N3HW = np.random.default_rng(0).integers(0, 256, (PHOTOS, 3, SIDE, SIDE), np.uint8)
    scale_311, shift_311 = (torch.from_numpy(a)[:, None, None] for a in Preprocessing().scale_shift())
    with torch.no_grad():
        model(torch.from_numpy(pixels_N3HW) * scale_311 + shift_311)
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in ("url", "hf_hub_id")}
    write_folder(folder, model.state_dict(), ModelConfig(architecture, model.num_classes, pretrained_cfg=cfg))


def add_int8(folder: Path) -> None:
    """Beside drawn weights their int8 form, if NNCF is here: it passed no gate, and could not."""
    network, opened = open_network(str(folder))
    noise = np.random.default_rng(0).integers(0, 256, (PHOTOS, *opened.preprocessing.size, 3), np.uint8)
    with suppress(UnavailableError):
        (folder / FILE).write_bytes(quantise(network, list(noise)).to_bytes())
