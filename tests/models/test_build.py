"""The factory: a name and options become a network, and a wrong option is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dla.errors import DamagedError, UnavailableError, UnknownNameError, UsageError
from dla.models.build import build
from dla.models.registry import PretrainedCfg
from dla.weights.create import create_model, model_entrypoint
from dla.weights.model_folder import ModelConfig, write_folder


def test_none_means_the_default() -> None:
    with torch.device("meta"):
        net = build("dla46_c", num_classes=None, global_pool=None)
    assert net.num_classes == 1000
    assert net.global_pool.pool_type == "avg"


def test_every_option_reaches_the_network() -> None:
    with torch.device("meta"):
        net = build("dla46_c", num_classes=4, in_chans=2, global_pool="max", drop_rate=0.1, output_stride=8)
    assert (net.num_classes, net.in_chans, net.global_pool.pool_type, net.head_drop.p) == (4, 2, "max", 0.1)
    assert [info["reduction"] for info in net.feature_info] == [1, 2, 4, 8, 8, 8]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("drop_path", "dla34 has no option 'drop_path'. Nearest: drop_path_rate"),
        ("num_class", "dla34 has no option 'num_class'. Nearest: num_classes"),
        ("outputstride", "dla34 has no option 'outputstride'. Nearest: output_stride"),
        ("levels", "dla34 has no option 'levels'."),
        ("xyzzy", "dla34 has no option 'xyzzy'. Options: output_stride, num_classes, in_chans, global_pool"),
    ],
)
def test_an_unknown_option_is_told_with_the_nearest(option: str, message: str) -> None:
    for value in (1, None):
        with pytest.raises(TypeError) as caught:
            build("dla34", **{option: value})
        assert str(caught.value).startswith(message)


def test_an_unknown_network_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r'no network is called "dla60_res2nxt"\. Nearest: dla60_res2next'):
        build("dla60_res2nxt")


def test_each_network_has_a_record_of_its_own() -> None:
    with torch.device("meta"):
        one, other = build("dla34"), build("dla34")
    one.pretrained_cfg["num_classes"] = 7
    assert other.pretrained_cfg["num_classes"] == 1000


@pytest.mark.parametrize("name", ["dla34_half", "dla60_res2next", "dla102x"])
def test_feature_info_tells_channels_and_reductions(name: str) -> None:
    with torch.device("meta"):
        net = build(name)
        x_N3HW = torch.empty(1, 3, 64, 96)
        for stage, info in zip(net.stages()[1:], net.feature_info, strict=True):
            x_N3HW = net.base_layer(x_N3HW) if info["module"] == "level0" else x_N3HW
            x_N3HW = stage(x_N3HW)
            assert x_N3HW.shape == (1, info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])
            assert net.get_submodule(info["module"]) is stage


# create_model: what it does beyond timm's contract (parity/test_contract.py)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a network of five classes, and its weights as a bare file with a network's name."""
    folder = tmp_path_factory.mktemp("model") / "five"
    torch.manual_seed(0)
    model = build("dla46x_c", num_classes=5)
    write_folder(folder, model.state_dict(), ModelConfig("dla46x_c", 5, tuple("abcde")))
    torch.save(model.state_dict(), folder.parent / "dla34.pth")
    return folder


def test_a_file_is_never_taken_for_a_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for file in ("dla34.pth", Path("dla34.pth")):
        model = create_model("dla46x_c", pretrained=True, pretrained_cfg_overlay={"file": file})
        assert (model.num_classes, model.pretrained_cfg["num_classes"]) == (5, 5)
    assert create_model("dla46x_c", checkpoint_path="dla34.pth", num_classes=5).num_classes == 5


def test_a_checkpoint_is_of_exactly_the_network(folder: Path) -> None:
    file = folder.parent / "dla34.pth"
    with pytest.raises(DamagedError, match="num_classes=5 loads its classifier"):
        create_model("dla46x_c", checkpoint_path=file)
    with pytest.raises(DamagedError, match=r"These are the weights of dla46x_c\."):
        create_model("dla46_c", checkpoint_path=file)
    with pytest.raises(UnavailableError, match="does not exist"):
        create_model("dla46x_c", checkpoint_path=folder / "nothing.pth")
    again = create_model(f"local-dir:{folder}", checkpoint_path=file)
    assert torch.equal(again.fc.weight, torch.load(file, weights_only=True)["fc.weight"])


def test_the_state_dict_of_a_record_is_strict(folder: Path) -> None:
    state = torch.load(folder.parent / "dla34.pth", weights_only=True)
    cfg = PretrainedCfg(state_dict=state, num_classes=5)
    assert torch.equal(create_model("dla46x_c", True, cfg).fc.weight, state["fc.weight"])
    assert create_model("dla46x_c", True, cfg, num_classes=3).num_classes == 3
    with pytest.raises(DamagedError, match="1 tensors unknown"):
        create_model("dla46x_c", True, {"state_dict": state | {"more": torch.ones(1)}, "num_classes": 5})


def test_a_config_on_the_hub_is_enough_without_weights(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--mine" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((folder / "config.json").read_bytes())
    model = create_model(f"hf-hub:me/mine@{'0' * 40}", cache_dir=tmp_path, in_chans=1)
    assert (model.num_classes, model.in_chans, model.pretrained_cfg["label_names"]) == (5, 1, tuple("abcde"))


def test_an_empty_path_is_none() -> None:
    with torch.device("meta"):
        assert create_model("dla46x_c", checkpoint_path="", pretrained_cfg={}, cache_dir="").num_classes == 1000


class Record:
    """A plain object with some of the fields."""

    def __init__(self, **fields: object) -> None:
        vars(self).update(fields)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ({"pretrained_cfg": {"means": 1}}, TypeError, "pretrained_cfg has no option 'means'. Nearest: mean"),
        ({"pretrained_cfg": Record(means=1)}, TypeError, "pretrained_cfg has no option 'means'. Nearest: mean"),
        ({"pretrained_cfg_overlay": {"crop": 1}}, TypeError, "pretrained_cfg_overlay has no option 'crop'. Nearest: "),
        (
            {"pretrained_cfg_overlay": {"input_size": (64, 64)}}, UsageError,
            "input_size of pretrained_cfg is (64, 64). Allowed: (channels, height, width)",
        ),
        (
            {"model_name": "dla34_half", "pretrained": True}, UsageError,
            "dla34_half has no weights to load: its pretrained_cfg names neither file, state_dict nor hf_hub_id",
        ),
        (
            {"pretrained": True, "pretrained_cfg": {"url": "https://example.org/dla34.pth"}}, UsageError,
            (
                "dla46x_c has no weights to load: its pretrained_cfg names neither file, state_dict nor hf_hub_id "
                "(url and hf_hub_filename are not supported). Try: pretrained_cfg_overlay=dict(file=PATH)"
            ),
        ),
        (
            {"pretrained": True, "pretrained_cfg_overlay": {"hf_hub_filename": "other.bin"}}, UsageError,
            "dla46x_c has no weights to load",
        ),
        (
            {"model_name": "shipped:tiny200", "pretrained_cfg": "in1k"}, UsageError,
            "shipped:tiny200 brings its own pretrained_cfg. Try: pretrained_cfg_overlay for single fields",
        ),
        (
            {"model_name": "shipped:tiny200", "pretrained_cfg_overlay": {"file": "a.pth"}}, UsageError,
            "shipped:tiny200 names the weights, but file of pretrained_cfg_overlay names other ones",
        ),
        (
            {"model_name": "me/mine"}, UnavailableError, "me/mine does not exist. On the hub: hf-hub:me/mine",
        ),
        ({"model_name": "dla35"}, UnknownNameError, 'no network is called "dla35". Nearest: dla34'),
        ({"new_head": True}, TypeError, "dla46x_c has no option 'new_head'."),
        ({"pretrained": True, "architecture": "dla34"}, TypeError, "dla46x_c has no option 'architecture'."),
    ],
)  # fmt: skip
def test_a_wrong_call_is_told(call: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        create_model(**{"model_name": "dla46x_c", **call})
    assert str(caught.value).startswith(message)


def test_a_function_for_each_network() -> None:
    with torch.device("meta"):
        assert model_entrypoint("dla34_half")(num_classes=3).fc.weight.shape == (3, 256, 1, 1)
    with pytest.raises(UnknownNameError, match='no network is called "dla61"'):
        model_entrypoint("dla61")
    with pytest.raises(RuntimeError, match='no module of networks is called "resnet"'):
        model_entrypoint("dla34", "resnet")
