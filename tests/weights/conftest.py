"""Files as timm writes them, and a hub on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from support import hub_server
from support.oracle import randomise, timm


@pytest.fixture(scope="session")
def timm_model() -> nn.Module:
    """A small network of timm's, with statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = timm.create_model("dla46x_c", num_classes=5)
    randomise(model)
    return model.eval()


@pytest.fixture(scope="session")
def timm_folder(timm_model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that timm's own exporter writes for it."""
    folder = tmp_path_factory.mktemp("timm") / "dla46x_c"
    labels = {"label_names": list("abcde"), "label_descriptions": {"a": "an apple"}}
    timm.models.save_for_hf(timm_model, str(folder), model_config=labels, safe_serialization=True)
    return folder


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.serve() as running:
        yield running
