"""Strict loading, compared with timm wherever timm has an answer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dla.errors import DamagedError, UnavailableError, UnknownNameError, UsageError
from dla.models.build import build
from dla.models.dla import DLA
from dla.weights import spec
from dla.weights.keys import unused_projections
from dla.weights.load import LoadReport, adapt_first_conv, load_model, load_state
from dla.weights.model_folder import ModelConfig, half_precision, read_config, write_folder
from support.oracle import randomise, timm

pytestmark = pytest.mark.slow

SMALL = ["dla46_c", "dla46x_c", "dla60x_c", "dla34"]


def logits(model: nn.Module, channels: int = 3) -> Tensor:
    x_NCHW = torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.eval()(x_NCHW)  # type: ignore[no-any-return]


def check_same(ours: nn.Module, theirs: nn.Module, channels: int = 3) -> None:
    expected = logits(theirs, channels)
    assert (logits(ours, channels) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", SMALL)
def test_timms_weights_both_ways(name: str) -> None:
    theirs = timm.create_model(name, num_classes=3)
    randomise(theirs)
    ours = build(name, num_classes=3)
    assert load_state(ours, theirs.state_dict()) == LoadReport()
    check_same(ours, theirs)
    back = timm.create_model(name, num_classes=3)
    back.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in theirs.state_dict().items())


@pytest.fixture(scope="module")
def trained() -> DLA:
    torch.manual_seed(0)
    model = build("dla46_c", num_classes=4)
    randomise(model)
    return model


def fresh(name: str = "dla46_c", **options: Any) -> DLA:
    torch.manual_seed(1)
    return build(name, **{"num_classes": 4, **options})


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["dla46_c", "dla60x_c", "dla34"])
def test_the_authors_layout(name: str) -> None:
    """Their projections come last in each tree, and those of deeper trees are there though nothing uses them."""
    source = fresh(name)
    dead = {key: torch.full(shape, 0.5) for key, shape in unused_projections(source).items()}
    state = dict(sorted({**source.state_dict(), **dead}.items(), key=lambda item: ("project" in item[0], item[0])))
    state = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    target = build(name, num_classes=4)
    report = load_state(target, state, where="dla.pth")
    assert equal(target, source)
    assert report.dropped == tuple(sorted(key for key in dead if key in state))
    layers = ", ".join(sorted({key.split(".project")[0] + ".project" for key in dead}))
    assert report.notes == (f"dla.pth has projections that no output depends on; these were dropped: {layers}.",)


def test_a_dead_projection_of_another_shape_is_no_exception(trained: DLA) -> None:
    state = trained.state_dict() | {"level4.project.0.weight": torch.zeros(2, 2, 1, 1)}
    with pytest.raises(DamagedError, match=r"1 tensors unknown \(level4\.project\.0\.weight\)"):
        load_state(fresh(), state)


def test_wrapped_networks(trained: DLA) -> None:
    for wrapped in (nn.DataParallel(trained), nn.DataParallel(nn.DataParallel(trained))):
        for compiled in ("", "_orig_mod.", "module._orig_mod."):
            state = {f"{compiled}{name}": tensor for name, tensor in wrapped.state_dict().items()}
            target = fresh()
            assert load_state(target, state) == LoadReport()
            assert equal(target, trained)


def test_missing_counters_start_at_zero(trained: DLA) -> None:
    target = fresh()
    for module in target.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(9)
    state = {name: tensor for name, tensor in trained.state_dict().items() if "num_batches" not in name}
    load_state(target, state)
    assert {int(tensor) for name, tensor in target.state_dict().items() if "num_batches" in name} == {0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_the_networks(trained: DLA, dtype: torch.dtype) -> None:
    stored = {name: t.to(dtype) if t.is_floating_point() else t.int() for name, t in trained.state_dict().items()}
    target = fresh()
    load_state(target, stored)
    assert {tensor.dtype for tensor in target.state_dict().values()} == {torch.float32, torch.int64}
    assert all(torch.equal(tensor, stored[name].to(tensor.dtype)) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_weights_are_copies(trained: DLA, device: str) -> None:
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    with torch.device(device):
        target = fresh()
    load_state(target, state)
    for tensor in state.values():
        tensor.zero_()
    assert equal(target, trained)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: torch.full_like(t, float("nan")), "holds values that are infinite or not numbers"),
        (lambda t: t.index_fill(0, torch.tensor([3]), float("-inf")), "holds values that are infinite or not numbers"),
        (lambda t: t.double().index_fill(0, torch.tensor([3]), 1e300), "holds values that are infinite"),
        (lambda t: t.int(), "is stored as int32"),
        (lambda t: t.to(torch.complex64), "is stored as complex64"),
        (lambda t: t.to(torch.float8_e4m3fn), "is stored as float8_e4m3fn"),
        (lambda t: t.to_sparse(), r"is stored as float32 \(torch\.sparse_coo, cpu\), which is not a weight"),
        (lambda t: t.to("meta"), r"is stored as float32 \(torch\.strided, meta\), which is not a weight"),
        (lambda t: t[:1].expand(10**12, *t.shape[1:]), "is of another shape|1 tensors of another shape"),
    ],
)
def test_damaged_values(trained: DLA, damage: Callable[[Tensor], Tensor], said: str) -> None:
    key = "level5.root.bn.weight"
    target = fresh()
    with pytest.raises(DamagedError, match=said) as raised:
        load_state(target, trained.state_dict() | {key: damage(trained.state_dict()[key])}, where="w.pth")
    assert key in str(raised.value)
    assert "w.pth" in str(raised.value)
    assert equal(target, fresh()), "a refused file leaves the network as it was"


def test_missing_tensors_leave_the_network_as_it_was(trained: DLA) -> None:
    target = fresh()
    state = trained.state_dict()
    del state["level3.tree1.root.conv.weight"]
    with pytest.raises(DamagedError, match=r"^the state dict does not hold the weights of dla46_c: 1 tensors missing"):
        load_state(target, state)
    assert equal(target, fresh())


def test_a_new_head_only_on_request(trained: DLA) -> None:
    target = fresh(num_classes=7)
    with pytest.raises(DamagedError, match="num_classes=4 loads its classifier, new_head=True replaces it"):
        load_state(target, trained.state_dict())
    head = target.fc.weight.clone()
    report = load_state(target, trained.state_dict(), new_head=True, where="w.pth")
    assert report == LoadReport((), True, ("the classifier of w.pth was not loaded; the network keeps its own.",))
    assert torch.equal(target.fc.weight, head)
    assert torch.equal(target.level5.root.conv.weight, trained.level5.root.conv.weight)


@given(
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.float16, torch.float64]),
)
def test_the_first_convolution_is_adapted_as_timm_does(stored: int, wanted: int, dtype: torch.dtype) -> None:
    weight = torch.randn(4, stored, 3, 3, dtype=dtype)
    expected = timm.models.adapt_input_conv(wanted, weight.clone(), base_chans=stored)
    adapted = adapt_first_conv(weight, wanted)
    assert adapted.dtype == dtype
    torch.testing.assert_close(adapted, expected, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)


# The folder, the file, and what may be changed on the way.


def test_timms_folder(timm_folder: Path, timm_model: nn.Module) -> None:
    before = torch.get_rng_state()
    opened = load_model(str(timm_folder))
    assert torch.equal(torch.get_rng_state(), before), "nothing is drawn at random for weights that are loaded"
    check_same(opened.model, timm_model)
    assert opened.origin == str(timm_folder)
    assert opened.report == LoadReport()
    assert opened.config.label_names == tuple("abcde")
    assert opened.model.pretrained_cfg["mean"] == timm_model.pretrained_cfg["mean"]
    assert opened.model.pretrained_cfg["architecture"] == "dla46x_c"
    assert opened.model.num_classes == opened.model.pretrained_cfg["num_classes"] == 5


def test_what_a_shipped_network_is_called(timm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "shipped", lambda name: timm_folder)
    assert load_model("shipped:tiny").origin == "shipped:tiny"
    assert load_model("shipped:tiny", num_classes=2).report.notes[0].startswith("the classifier of shipped:tiny (5 ")


def test_an_opened_network_is_a_usual_one(timm_folder: Path) -> None:
    model = load_model(f"local-dir:{timm_folder}").model
    assert model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("asked", "options"), [(1, {}), (4, {}), (3, {}), (7, {"output_stride": 32})])
def test_other_channels_as_timm_does(timm_folder: Path, asked: int, options: dict[str, int]) -> None:
    opened = load_model(str(timm_folder), in_chans=asked, **options)
    theirs = timm.create_model(f"local-dir:{timm_folder}", pretrained=True, in_chans=asked)
    check_same(opened.model, theirs, asked)
    said = (f"the first convolution of {timm_folder} was adapted from 3 to {asked} channels.",)
    assert opened.report.notes == (said if asked != 3 else ())
    assert opened.config.in_chans == opened.model.in_chans == asked
    assert opened.model.pretrained_cfg["input_size"] == tuple(theirs.pretrained_cfg["input_size"]) == (3, 224, 224)


def test_another_number_of_classes(timm_folder: Path, timm_model: nn.Module) -> None:
    opened = load_model(str(timm_folder), num_classes=9)
    said = f"the classifier of {timm_folder} (5 classes) was replaced by a new one (9), which needs training."
    assert opened.report == LoadReport((), True, (said,))
    assert logits(opened.model).shape == (2, 9)
    assert (opened.config.num_classes, opened.config.label_names, opened.config.label_descriptions) == (9, None, None)
    x_N3HW = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        maps, theirs = opened.model.eval().forward_features(x_N3HW), timm_model.forward_features(x_N3HW)
    torch.testing.assert_close(maps, theirs, rtol=1e-4, atol=1e-5)


def test_no_classifier(timm_folder: Path) -> None:
    opened = load_model(str(timm_folder), num_classes=0)
    said = f"the classifier of {timm_folder} (5 classes) was removed, as requested."
    assert opened.report == LoadReport((), False, (said,))
    check_same(opened.model, timm.create_model(f"local-dir:{timm_folder}", pretrained=True, num_classes=0))


def test_the_same_number_of_classes(timm_folder: Path) -> None:
    kept = load_model(str(timm_folder), num_classes=5)
    assert (kept.report, kept.config.label_names) == (LoadReport(), tuple("abcde"))
    replaced = load_model(str(timm_folder), num_classes=5, new_head=True)
    assert (replaced.report.new_head, replaced.config.label_names) == (True, None)
    assert not torch.equal(kept.model.fc.weight, replaced.model.fc.weight)


def test_options_go_before_the_config(timm_folder: Path) -> None:
    opened = load_model(str(timm_folder), global_pool="max", drop_path_rate=0.1, output_stride=16, drop_rate=None)
    assert opened.model.global_pool.pool_type == "max"
    assert opened.model.feature_info[-1]["reduction"] == 16
    assert opened.config.model_args == {"in_chans": 3, "output_stride": 16, "global_pool": "max"}
    doubled = load_model(str(timm_folder), num_classes=2, global_pool="catavgmax", dtype=torch.float64)
    assert doubled.model.fc.weight.shape == (2, 512, 1, 1)
    assert {parameter.dtype for parameter in doubled.model.parameters()} == {torch.float64}
    with pytest.raises(TypeError, match="drop_path_rate"):
        load_model(str(timm_folder), drop_path=0.1)


@pytest.mark.parametrize("changes", [{}, {"num_classes": 9}, {"in_chans": 1, "global_pool": "avgmax"}])
def test_what_was_opened_can_be_written_and_opened(timm_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    opened = load_model(str(timm_folder), **changes)
    write_folder(tmp_path / "again", opened.model.state_dict(), opened.config)
    again = load_model(str(tmp_path / "again"))
    assert equal(again.model, opened.model)
    assert again.config.to_json() == opened.config.to_json()
    torch.testing.assert_close(logits(again.model, again.model.in_chans), logits(opened.model, opened.model.in_chans))


def test_what_a_replaced_classifier_makes_untrue(timm_folder: Path, tmp_path: Path) -> None:
    ours = {"license": "mine", "task": "classify", "preprocessing": {"size": 64}, "temperature": 1.2, "results": [1]}
    opened = load_model(str(timm_folder))
    write_folder(tmp_path / "m", opened.model.state_dict(), dataclasses.replace(opened.config, dla=ours))
    assert load_model(str(tmp_path / "m")).config.dla == ours
    replaced = load_model(str(tmp_path / "m"), num_classes=2).config.dla
    assert replaced == {key: ours[key] for key in ("license", "task", "preprocessing")}


def test_half_precision_folder(trained: DLA, tmp_path: Path) -> None:
    half = half_precision(trained.state_dict())
    write_folder(tmp_path / "m", half, ModelConfig("dla46_c", 4))
    model = load_model(str(tmp_path / "m")).model
    assert all(torch.equal(tensor, half[name].to(tensor.dtype)) for name, tensor in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("network", ["dla46_c", "dla60x_c"])
def test_a_bare_file_tells_what_it_is(tmp_path: Path, name: str, network: str) -> None:
    source = fresh(network, num_classes=6, in_chans=2)
    save = safetensors.torch.save_file if name.endswith("s") else torch.save
    save(source.state_dict(), tmp_path / name)
    opened = load_model(str(tmp_path / name))
    assert equal(opened.model, source)
    assert (opened.config.architecture, opened.config.num_classes, opened.config.in_chans) == (network, 6, 2)
    assert opened.config.pretrained_cfg["interpolation"] == "bilinear"
    assert opened.config.label_names is None
    assert load_model(str(tmp_path / name), architecture=network).origin == str(tmp_path / name)


def test_a_bare_file_without_a_classifier(tmp_path: Path) -> None:
    source = fresh(num_classes=0)
    torch.save({"state_dict": {f"module.{n}": t for n, t in source.state_dict().items()}}, tmp_path / "w.pth.tar")
    assert load_model(str(tmp_path / "w.pth.tar")).config.num_classes == 0
    assert load_model(str(tmp_path / "w.pth.tar"), num_classes=3).model.num_classes == 3


def test_a_bare_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UsageError) as raised:
        load_model(str(path))
    assert (
        str(raised.value) == f"{path} fits no network of the table exactly. Try: name the architecture, such as dla60."
    )
    with pytest.raises(DamagedError, match=r"1 tensors unknown \(conv\.weight\)\.$"):
        load_model(str(path), architecture="dla34")
    with pytest.raises(UnknownNameError, match='no network is called "dla35"'):
        load_model(str(path), architecture="dla35")


def test_a_file_with_averaged_weights_and_another_digest(tmp_path: Path) -> None:
    path = tmp_path / "dla46_c-00000000.pth"
    torch.save({"state_dict": fresh().state_dict(), "model_ema": fresh().state_dict()}, path)
    digest_note, ema_note = load_model(str(path)).report.notes
    assert digest_note.startswith(f"{path} is not the published file: ")
    assert ema_note == f"{path} is a training checkpoint; its averaged weights (model_ema) are used."


def test_a_config_that_names_another_network(timm_folder: Path, tmp_path: Path) -> None:
    weights = (timm_folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((timm_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "dla46_c"}))
    with pytest.raises(DamagedError, match=r"These are the weights of dla46x_c\.$"):
        load_model(str(tmp_path))
    with pytest.raises(DamagedError, match=r"is a dla46x_c by its config\.json, but dla60 was asked for\.$"):
        load_model(str(timm_folder), architecture="dla60")


def test_channels_that_contradict_the_config_are_not_adapted(timm_folder: Path, tmp_path: Path) -> None:
    write_folder(tmp_path, fresh("dla46x_c", num_classes=5, in_chans=1).state_dict(), read_config(timm_folder))
    for options in ({}, {"in_chans": 4}):
        with pytest.raises(DamagedError, match=r"base_layer\.0\.weight: 16x1x7x7 in the file"):
            load_model(str(tmp_path), **options)


ORDER = ["model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"]
OTHERS = ["a.safetensors", "b.safetensors", "a.pth", "a.pth.tar", "a.bin"]


def test_which_file_of_a_folder(trained: DLA, tmp_path: Path) -> None:
    """The order is timm's; each file is told from the others by one bias."""
    (tmp_path / "config.json").write_text(ModelConfig("dla46_c", 4).to_json())
    for i, name in enumerate(ORDER + OTHERS):
        state = trained.state_dict() | {"fc.bias": torch.full((4,), float(i))}
        (safetensors.torch.save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    for i, name in enumerate(ORDER + OTHERS):
        opened = load_model(str(tmp_path))
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
        assert opened.model.fc.bias[0] == theirs.fc.bias[0] == i
        several = f"{tmp_path} has several weight files; a.safetensors is used, not b.safetensors."
        assert opened.report.notes == ((several,) if name == "a.safetensors" else ())
        (tmp_path / name).unlink()
    with pytest.raises(UnavailableError, match=r"has no weights: neither model\.safetensors nor another "):
        load_model(str(tmp_path))
