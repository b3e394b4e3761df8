"""Weights in several files, as Hugging Face's libraries write them, and the wrappers that training leaves."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dla.errors import DamagedError, UnavailableError, UsageError
from dla.weights.keys import plain_names
from dla.weights.load import load_model
from dla.weights.model_folder import INDEX, WEIGHTS, ModelConfig, read_config, write_folder
from dla.weights.shards import stored_bytes
from dla.weights.spec import open_files
from dla.weights.state_files import parse_weights
from support.oracle import timm
from support.tiny import tiny

STATE = {"a.weight": torch.arange(300.0).reshape(3, 100), "a.count": torch.tensor(7), "b": torch.ones(40).half()}


def write_shards(folder: Path, state: dict[str, Tensor] = STATE, size: int = 500) -> None:
    """By huggingface_hub's own writer."""
    (folder / "config.json").write_text(json.dumps({"architecture": "dla46_c", "num_classes": 2}))
    save_torch_state_dict(state, folder, max_shard_size=size)
    assert (folder / INDEX).is_file()


def read(folder: Path) -> dict[str, Tensor]:
    files = open_files(str(folder))
    return parse_weights(files.weights, files.weights_name, files.weights_title, files.sha256).state


def check_same(state: dict[str, Tensor], wanted: dict[str, Tensor] = STATE) -> None:
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


def test_shards_hold_what_one_file_would(tmp_path: Path) -> None:
    write_shards(tmp_path)
    shards = list(tmp_path.glob("model-0*.safetensors"))
    assert len(shards) > 1
    check_same(read(tmp_path))
    assert stored_bytes(tmp_path / INDEX) == sum(path.stat().st_size for path in shards)


@pytest.mark.slow
def test_a_network_in_shards_is_the_network_in_one_file(tmp_path: Path) -> None:
    model = timm.create_model("dla46_c", num_classes=2)
    write_folder(tmp_path / "one", model.state_dict(), ModelConfig("dla46_c", 2))
    (tmp_path / "parts").mkdir()
    write_shards(tmp_path / "parts", model.state_dict(), 1_000_000)
    one, parts = (load_model(str(tmp_path / name)).model.state_dict() for name in ("one", "parts"))
    check_same(parts, one)


def test_what_is_wrong_with_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(tmp_path.glob("model-0*.safetensors"))
    whole = shards[0].read_bytes()

    def check(match: str, error: type[Exception] = DamagedError) -> None:
        with pytest.raises(error, match=match):
            read(tmp_path)

    shards[0].write_bytes(whole[:-1])
    check("is truncated or damaged")
    shards[0].write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    check("is a git-lfs pointer")
    shards[0].unlink()
    check(f"{shards[0].name} does not exist", UnavailableError)
    shards[0].write_bytes(whole)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], "c": shards[0].name}}))
    check("the tensor c is not in")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {f"t{i}": f"m{i}.safetensors" for i in range(1001)}}))
    check("names 1,001 files")
    (tmp_path / INDEX).unlink()
    check("has weights in several files, but no model.safetensors.index.json", UnavailableError)
    with pytest.raises(UsageError, match="holds only a part of the weights"):
        load_model(str(shards[0]))
    (tmp_path / INDEX).touch()
    with pytest.raises(UsageError, match="only says which files hold the weights"):
        load_model(str(tmp_path / INDEX))


def test_one_file_comes_before_shards(tmp_path: Path) -> None:
    write_shards(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"x")
    assert open_files(str(tmp_path)).weights == b"x"


WRAPPED: dict[str, Any] = {
    "model_state_dict": {"model_state_dict": STATE, "epoch": 3},
    "params": {"params": STATE},
    "params_ema before params": {"params": {"b": torch.zeros(1)}, "params_ema": STATE},
    "net": {"net": STATE, "acc": 91.5, "epoch": 3},
    "module": {"module": STATE, "dp_world_size": 1},
    "AveragedModel": {"n_averaged": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in STATE.items()}},
    "one in another": {"state_dict": {"model": STATE}},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_wrappers_of_training(name: str) -> None:
    file = io.BytesIO()
    torch.save(WRAPPED[name], file)
    weights = parse_weights(file.getvalue(), "w.pth")
    check_same(plain_names(weights.state))
    assert ("averaged weights (params_ema)" in "".join(weights.notes)) == (name == "params_ema before params")


def test_pytorch_s_average_loads_as_its_network() -> None:
    network = tiny()
    averaged = AveragedModel(network)
    check_same(plain_names(averaged.state_dict()), network.state_dict())


def test_programs_are_told_from_weights() -> None:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is old, its files are about
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), file)
    with pytest.raises(UnavailableError, match=r"w\.pt is a TorchScript archive, a program with its weights"):
        parse_weights(file.getvalue(), "w.pt")
    exported = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), exported)
    with pytest.raises(UnavailableError, match=r"w\.pt is a program that torch\.export wrote"):
        parse_weights(exported.getvalue(), "w.pt")


def test_a_checkpoint_of_another_kind_says_what_it_has() -> None:
    file = io.BytesIO()
    torch.save({"weights": STATE, "epoch": 3}, file)
    with pytest.raises(DamagedError, match=r"is a checkpoint, but none of its entries \(weights, epoch\) is called"):
        parse_weights(file.getvalue(), "w.pth")


# timm's older config, whose settings are at the root.

OLDER = {
    "architecture": "dla46x_c", "num_classes": 3, "num_features": 256, "global_pool": "avg",
    "input_size": [3, 96, 96], "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "labels": ["c0", "c1", "c2"], "first_conv": "base_layer.0",
    "classifier": "fc", "pool_size": [3, 3],
}  # fmt: skip


@pytest.mark.parametrize("changed", [
    {}, {"label_names": ["x", "y", "z"]}, {"labels": {"0": "c0", "1": "c1", "2": "c2"}}, {"crop_pct": None},
    {"label_descriptions": {"c0": "first"}}, {"input_size": [4, 64, 96]},
])  # fmt: skip
def test_timm_s_older_config_is_what_timm_makes_of_it(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OLDER | changed))
    theirs, architecture, _ = timm.models._hub._parse_model_cfg(json.loads(json.dumps(OLDER | changed)), {})
    ours = read_config(tmp_path)
    assert ours.architecture == architecture
    assert ours.num_classes == theirs["num_classes"]
    assert ours.pretrained_cfg == theirs
    names = theirs["label_names"]
    assert list(ours.label_names or ()) == (list(names.values()) if isinstance(names, dict) else names)
    assert (ours.label_descriptions or None) == theirs.get("label_descriptions")
    assert ours.in_chans == theirs["input_size"][0]


def test_an_error_of_the_older_config_names_the_field_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OLDER | {"crop_pct": "x"}))
    with pytest.raises(DamagedError, match=r'config\.json: crop_pct is "x"'):
        read_config(tmp_path)
