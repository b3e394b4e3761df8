"""The model folder: what is written can be read, by us and by timm; nothing else is touched."""

from __future__ import annotations

import json
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dla.errors import DamagedError, DlaError, UnavailableError, UsageError
from dla.models.build import build
from dla.models.registry import TABLE
from dla.weights.model_folder import ModelConfig, half_precision, parse_config, read_config, write_folder
from dla.weights.state_files import read_state
from support.oracle import randomise, timm

STATE = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7)}
CONFIG = ModelConfig("dla34", 2, ("cat", "dog"))

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=8,
)
model_args = st.fixed_dictionaries(
    {},
    optional={
        "in_chans": st.integers(1, 9),
        "output_stride": st.sampled_from([8, 16, 32]),
        "global_pool": st.sampled_from(["avg", "max", "avgmax", "catavgmax", ""]),
        "drop_rate": st.floats(0, 0.99),
        "drop_path_rate": st.floats(0, 0.99),
    },
)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    names = draw(st.none() | st.lists(texts, unique=True))
    return ModelConfig(
        draw(st.sampled_from(list(TABLE))),
        draw(st.integers(0, 1000)) if names is None else len(names),
        None if names is None else tuple(names),
        draw(st.none() | st.dictionaries(texts, texts, min_size=1)),
        draw(model_args),
        draw(
            st.dictionaries(
                texts.filter(lambda key: "label" not in key and key not in ("input_size", "crop_pct")), plain
            )
        ),
        draw(st.dictionaries(texts.filter(lambda key: key not in ("format", "preprocessing")), plain)),
    )


@given(configs())
def test_a_config_is_read_as_it_was_written(config: ModelConfig) -> None:
    text = config.to_json()
    again = ModelConfig.from_mapping(json.loads(text), "config.json")
    assert again == config
    assert again.to_json() == text
    assert text.endswith("}\n")


def test_order_has_no_meaning() -> None:
    one = ModelConfig("dla34", 0, pretrained_cfg={"a": 1, "b": [2, 1]}, dla={"x": {"p": 1, "q": 2}})
    other = ModelConfig("dla34", 0, pretrained_cfg={"b": (2, 1), "a": 1}, dla={"x": {"q": 2, "p": 1}})
    assert one.to_json() == other.to_json()
    assert one.to_json() != ModelConfig("dla34", 0, pretrained_cfg={"a": 1, "b": [1, 2]}, dla=one.dla).to_json()


def test_what_json_cannot_say() -> None:
    for value in (float("nan"), {1, 2}, "\ud800"):
        with pytest.raises(UsageError, match="the config of dla34 cannot be written as JSON: "):
            ModelConfig("dla34", 0, dla={"results": value}).to_json()


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", STATE, CONFIG)
    turned = {name: STATE[name].clone().contiguous() for name in reversed(STATE)}
    turned["b"] = STATE["b"].t().contiguous().t()
    write_folder(tmp_path / "a" / "deeper" / "other", turned, CONFIG)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "a" / "deeper" / "other" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["config.json", "model.safetensors"]
    data = (tmp_path / "one" / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert header["__metadata__"] == {"format": "pt"}
    torch.testing.assert_close(read_state(tmp_path / "one" / "model.safetensors"), STATE)
    assert read_config(tmp_path / "one") == CONFIG


@pytest.mark.parametrize("name", ["dla46_c", "dla46x_c"])
def test_timm_reads_our_folder(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = build(name, num_classes=3, in_chans=2)
    randomise(model)
    cfg = {"input_size": [2, 64, 64], "mean": [0.1, 0.2], "std": [0.3, 0.4], "crop_pct": 1.0, "tag": "mine"}
    config = ModelConfig(name, 3, ("x", "y", "z"), {"x": "an x"}, {"in_chans": 2}, cfg, {"task": "classify"})
    write_folder(tmp_path / "m", model.state_dict(), config)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True).eval()
    x_N2HW = torch.rand(2, 2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x_N2HW), theirs(x_N2HW), atol=1e-5, rtol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == ["x", "y", "z"]
    assert theirs.pretrained_cfg["mean"] == [0.1, 0.2]
    assert theirs.num_classes == 3


def test_we_read_timms_config(timm_folder: Path, timm_model: nn.Module) -> None:
    config = read_config(timm_folder)
    assert (config.architecture, config.num_classes, config.in_chans) == ("dla46x_c", 5, 3)
    assert config.label_names == tuple("abcde")
    assert config.label_descriptions == {"a": "an apple"}
    assert config.model_args == {"in_chans": 3, "global_pool": "avg"}
    assert tuple(config.pretrained_cfg["mean"]) == timm_model.pretrained_cfg["mean"]
    assert config.pretrained_cfg["interpolation"] == "bilinear"
    assert config.dla == {}


def test_timms_other_spellings() -> None:
    spelled = {"architecture": "dla34", "pretrained_cfg": {"num_classes": 2, "label_names": ["a", "b"]}}
    assert ModelConfig.from_mapping(spelled, "c").label_names == ("a", "b")
    spelled = {"architecture": "dla34", "num_classes": 2, "label_names": {"1": "b", "0": "a"}}
    assert ModelConfig.from_mapping(spelled, "c").label_names == ("a", "b")
    assert ModelConfig("dla34", 0).in_chans == 3
    assert ModelConfig("dla34", 0, pretrained_cfg={"input_size": [4, 9, 9]}).in_chans == 4
    assert ModelConfig("dla34", 0, {}, {}, {"in_chans": 1}, {"input_size": [4, 9, 9]}).in_chans == 1


def test_what_is_done_with_exif() -> None:
    for ours, exif in (
        ({}, "apply"),
        ({"preprocessing": None}, "apply"),
        ({"preprocessing": {"exif": "ignore"}}, "ignore"),
    ):
        assert ModelConfig.from_mapping(GOOD | {"dla": ours}, "c").exif == exif


GOOD = {"architecture": "dla34", "num_classes": 2}
BROKEN: list[tuple[Any, str]] = [
    ([], "this is a list, not an object with the field architecture."),
    ({"num_classes": 2}, "architecture is missing. Allowed: the name of a network, such as dla60."),
    (GOOD | {"architecture": 34}, "architecture is a number. Allowed: the name of a network, such as dla60."),
    (GOOD | {"architecture": "dla43"}, 'architecture is "dla43", which is not a DLA network. Nearest: dla34, '),
    (GOOD | {"architecture": "vgg16"}, 'architecture is "vgg16", which is not a DLA network. All: dla models'),
    ({"architecture": "dla34"}, "num_classes is missing. Allowed: 0 to 1000000."),
    (GOOD | {"num_classes": -1}, "num_classes is -1. Allowed: 0 to 1000000."),
    (GOOD | {"num_classes": 10**15}, "num_classes is 1000000000000000. Allowed: 0 to 1000000."),
    (GOOD | {"num_classes": True}, "num_classes is true. Allowed: 0 to 1000000."),
    (GOOD | {"num_classes": 2.0}, "num_classes is 2.0. Allowed: 0 to 1000000."),
    (GOOD | {"num_classes": "2" * 99}, f'num_classes is "{"2" * 36}.... Allowed: 0 to 1000000.'),
    (GOOD | {"label_names": "ab"}, "label_names must hold one text per class."),
    (GOOD | {"label_names": ["a", 3]}, "label_names must hold one text per class."),
    (GOOD | {"label_names": ["a", ""]}, "label_names must hold one text per class."),
    (GOOD | {"label_names": ["a"]}, "label_names has 1 entries for num_classes 2."),
    (GOOD | {"label_names": ["a", "a"]}, 'label_names has "a" twice; names must be unique.'),
    (GOOD | {"label_names": {"0": "a", "2": "b"}}, "label_names must hold one text per class."),
    (GOOD | {"label_names": {"0": "a"}}, "label_names has 1 entries for num_classes 2."),
    (GOOD | {"label_descriptions": ["a"]}, "label_descriptions is a list. Allowed: an object."),
    (GOOD | {"label_descriptions": {"a": 1}}, "label_descriptions must hold only texts."),
    (GOOD | {"model_args": [1]}, "model_args is a list. Allowed: an object."),
    (GOOD | {"model_args": {"num_classes": 3}}, "model_args.num_classes is 3 but num_classes is 2."),
    (
        GOOD | {"model_args": {"block": "os.system"}},
        "model_args.block is not an option of the network. Allowed: in_chans, ",
    ),
    (GOOD | {"model_args": {"in_chans": 0}}, "model_args.in_chans is 0. Allowed: 1 to 65536."),
    (GOOD | {"model_args": {"output_stride": 4}}, "model_args.output_stride is 4. Allowed: 8, 16, 32."),
    (GOOD | {"model_args": {"global_pool": "min"}}, "model_args.global_pool is \"min\". Allowed: 'avg', 'max', "),
    (GOOD | {"model_args": {"drop_rate": 1}}, "model_args.drop_rate is 1. Allowed: from 0 to below 1."),
    (GOOD | {"pretrained_cfg": "x"}, "pretrained_cfg is a text. Allowed: an object."),
    (
        GOOD | {"pretrained_cfg": {"input_size": [3, 224]}},
        "pretrained_cfg.input_size is [3, 224]. Allowed: [channels, ",
    ),
    (GOOD | {"pretrained_cfg": {"input_size": [0, 1, 1]}}, "pretrained_cfg.input_size is [0, 1, 1]. Allowed: ["),
    (GOOD | {"pretrained_cfg": {"crop_pct": 0}}, "pretrained_cfg.crop_pct is 0. Allowed: a number above 0."),
    (GOOD | {"pretrained_cfg": {"crop_pct": "1"}}, 'pretrained_cfg.crop_pct is "1". Allowed: a number above 0.'),
    (GOOD | {"dla": {"preprocessing": [1]}}, "dla.preprocessing is a list. Allowed: an object."),
    (GOOD | {"dla": {"preprocessing": "apply"}}, "dla.preprocessing is a text. Allowed: an object."),
    (GOOD | {"dla": 1}, "dla is a number. Allowed: an object."),
    (GOOD | {"dla": {"format": 2}}, "dla.format is 2, this version of dla reads 1. Install a newer dla."),
    (GOOD | {"dla": {"format": "1"}}, 'dla.format is "1", this version of dla reads 1. Install a newer dla.'),
]


@pytest.mark.parametrize(("root", "said"), BROKEN)
def test_broken_configs(tmp_path: Path, root: Any, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(root))
    with pytest.raises(DamagedError) as raised:
        read_config(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'config.json'}: {said}")


@pytest.mark.parametrize(
    "data", [b"", b'{"architecture": "dla', b"\xff\xfe{}", b"[" * 100_000, b"9" * 10_000, b'["\\ud800"]']
)
def test_no_json(data: bytes) -> None:
    with pytest.raises(DamagedError, match=r"^c/config\.json is not valid JSON: "):
        parse_config(data, "c/config.json")


def test_no_config(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UnavailableError) as raised:
            read_config(folder)
        assert not isinstance(raised.value, DamagedError)
        assert str(raised.value).startswith(
            f"{folder / 'config.json'} does not exist. A model folder holds config.json"
        )
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UnavailableError, match=r"config\.json cannot be read: Is a directory\.$"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "config.json"])
def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"model_type": "bert"}')
    with pytest.raises(UsageError) as raised:
        write_folder(tmp_path, STATE, CONFIG)
    assert str(raised.value) == (
        f"{tmp_path} is not empty and not a model folder, so it was not changed. Try: a new or empty folder."
    )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, '{"model_type": "bert"}')]


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(UsageError, match="is a file. A model needs a folder of its own"):
        write_folder(tmp_path / "f", STATE, CONFIG)
    with pytest.raises(DlaError, match="cannot be written: Not a directory"):
        write_folder(tmp_path / "f" / "deeper", STATE, CONFIG)
    assert (tmp_path / "f").read_text() == "mine"


def test_a_config_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="label_names has 1 entries for num_classes 2"):
        write_folder(tmp_path / "m", STATE, ModelConfig("dla34", 2, ("a",)))
    assert not (tmp_path / "m").exists()


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_ends_in_the_middle(tmp_path: Path) -> None:
    large = {"a": torch.zeros(100_000)}
    with files_up_to(100_000), pytest.raises(DlaError, match=r"m cannot be written: File too large\.$") as raised:
        write_folder(tmp_path / "m", large, CONFIG)
    assert raised.value.exit_code == 1
    assert not (tmp_path / "m" / "model.safetensors").exists()
    write_folder(tmp_path / "m", STATE, CONFIG)  # what was left does not stand in the way
    with files_up_to(100_000), pytest.raises(DlaError):
        write_folder(tmp_path / "m", large, CONFIG)
    torch.testing.assert_close(read_state(tmp_path / "m" / "model.safetensors"), STATE)


def test_written_anew(tmp_path: Path) -> None:
    write_folder(tmp_path, STATE, CONFIG)
    write_folder(tmp_path, {"c": torch.ones(2)}, ModelConfig("dla60", 0))
    assert read_config(tmp_path) == ModelConfig("dla60", 0)
    assert list(read_state(tmp_path / "model.safetensors")) == ["c"]


def test_half_precision() -> None:
    state = build("dla46_c", num_classes=2).state_dict()
    half = half_precision(state)
    assert list(half) == list(state)
    for name, tensor in half.items():
        if name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.int64
        elif name.endswith(("running_mean", "running_var")):
            assert tensor.dtype == torch.float32
        else:
            assert tensor.dtype == torch.float16
            torch.testing.assert_close(tensor.float(), state[name], rtol=2**-11, atol=2**-24)
    assert sum(map(Tensor.nbytes.__get__, half.values())) < 0.52 * sum(map(Tensor.nbytes.__get__, state.values()))


def test_too_large_for_half_precision() -> None:
    with pytest.raises(UsageError, match=r"^a\.weight has values up to 7e\+04; float16 ends at 65504\.$"):
        half_precision({"a.weight": torch.tensor([1.0, -70_000.0])})
    assert half_precision({"a.running_var": torch.tensor([70_000.0])})["a.running_var"] == 70_000
