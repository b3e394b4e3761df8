"""Dense networks: the authors' layout, any size, and that the classifier may run before the upsampling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dla
from dla.models.dense import Dense
from dla.models.registry import TABLE
from dla.weights.load import load_state
from support.authors_segmenter import AuthorsSegmenter
from support.oracle import randomise, timm


@pytest.mark.parametrize(("ratio", "classes"), [(2, 19), (4, 3), (8, 2)])
def test_the_authors_weights_give_the_authors_answers(ratio: int, classes: int) -> None:
    theirs = AuthorsSegmenter(classes, ratio)
    randomise(theirs)
    backbone = dla.create_model("dla34", num_classes=0)
    ours = Dense.over(backbone, classes, ratio, up="authors")
    report = load_state(ours, theirs.state_dict())
    assert {name.split(".")[-2] for name in report.dropped} <= {"0", "1", "fc"}
    assert "base.fc.weight" in report.dropped
    x = torch.rand(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        found, wanted = ours.double().eval()(x), theirs.double().eval()(x)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9 * wanted.abs().max().item())
    torch.testing.assert_close(
        found.log_softmax(1), wanted.log_softmax(1), rtol=0, atol=1e-9 * wanted.abs().max().item()
    )


def test_a_missing_tensor_of_the_authors_is_named() -> None:
    theirs = AuthorsSegmenter(2, 8).state_dict()
    del theirs["dla_up.ida_0.node_1.0.weight"]
    ours = Dense.over(dla.create_model("dla34", num_classes=0), 2, 8, up="authors")
    with pytest.raises(dla.DamagedError, match="dla_up.ida_0.node_1.0.weight"):
        load_state(ours, theirs)


def test_the_authors_upsampling_is_not_trained() -> None:
    network = Dense.over(dla.create_model("dla34_half", num_classes=0), 2, up="authors")
    assert not network.up.weight.requires_grad
    assert all(p.requires_grad for name, p in network.named_parameters() if not name.startswith("up."))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_network_of_the_table_is_a_backbone(name: str) -> None:
    with torch.device("meta"):
        network = dla.create_model(name, task="segment", num_classes=4, down_ratio=4)
        assert network(torch.empty(2, 3, 33, 70)).shape == (2, 4, 33, 70)


@pytest.mark.parametrize("size", [(1, 1), (1, 47), (31, 33), (64, 32), (45, 97)])
@pytest.mark.parametrize("options", [{}, {"down_ratio": 8, "output_stride": 8}, {"down_ratio": 4, "up": "authors"}])
def test_any_size(size: tuple[int, int], options: dict[str, Any]) -> None:
    network = dla.create_model("dla34_half", task="edges", **options).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, *size)).shape == (1, 1, *size)


def test_the_classifier_may_run_before_the_upsampling() -> None:
    """Both are linear over pixels, so that their order is one of cost alone."""
    network = dla.create_model("dla34_half", task="segment", num_classes=5).double().eval()
    x = torch.rand(1, 3, 37, 50, dtype=torch.float64)
    with torch.no_grad():
        decoded = network.dla_up(network.base(x))
        after = network.fc(network.up(decoded, x.shape[2:]))
        torch.testing.assert_close(network(x), after, rtol=0, atol=1e-9)


def test_over_another_backbone() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList([nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)])

        def forward(self, x: Tensor) -> list[Tensor]:
            maps = []
            for step in self.steps:
                x = step(x)
                maps.append(x)
            return maps

    for ratio, channels in ((4, 4), (8, 8)):
        network = Dense.over(Pyramid(), 3, ratio).eval()
        assert network(torch.rand(1, 3, 41, 23)).shape == (1, 3, 41, 23)
        assert network.fc[0].in_channels == channels
    with pytest.raises(dla.UsageError, match="None is down_ratio 2"):
        Dense.over(Pyramid(), 3, 2)


def test_over_a_network_of_timm() -> None:
    """Its features of each pixel, classified, are what the same decoder over it gives."""
    backbone = timm.create_model("mobilenetv3_small_050", features_only=True)
    network = Dense.over(backbone, 3, down_ratio=4).double().eval()
    assert network.dla_up.strides == (4, 8, 16, 32)
    features = (
        dla.DLAUp.over(timm.create_model("mobilenetv3_small_050", features_only=True, out_indices=(1, 2, 3, 4)))
        .double()
        .eval()
    )
    features.dla_up.load_state_dict(network.dla_up.state_dict())
    own = network.base.module.state_dict()
    features.backbone.load_state_dict({name: own[name] for name in features.backbone.state_dict()})
    x = torch.rand(2, 3, 45, 70, dtype=torch.float64)
    with torch.no_grad():
        found = network(x)
        assert found.shape == (2, 3, 45, 70)
        torch.testing.assert_close(found, network.fc(features(x)), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("given", "said"), [({"down_ratio": 3}, "Allowed: 2, 4, 8"), ({"num_classes": 0}, "num_classes")]
)
def test_what_is_not_allowed(given: dict[str, int], said: str) -> None:
    with pytest.raises(dla.UsageError, match=said):
        Dense.over(dla.create_model("dla34_half", num_classes=0), **{"num_classes": 2, **given})


def test_segmentation_needs_its_classes_and_edges_have_one() -> None:
    with pytest.raises(dla.UsageError, match="num_classes"):
        dla.create_model("dla34_half", task="segment")
    with pytest.raises(dla.UsageError, match="Allowed: classify, segment, edges"):
        dla.create_model("dla34_half", task="depth", num_classes=2)
    assert dla.create_model("dla34_half", task="edges").num_classes == 1


def test_a_classifiers_weights_go_into_the_backbone() -> None:
    whole = dla.create_model("shipped:tiny200", pretrained=True)
    network = dla.create_model("shipped:tiny200", pretrained=True, task="segment", num_classes=3)
    state = whole.state_dict()
    for name, tensor in network.base.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_auxiliary_classifier_is_for_training_only() -> None:
    network = dla.create_model("dla34_half", task="segment", num_classes=3)
    network.add_auxiliary()
    x = torch.rand(2, 3, 32, 48)
    logits, auxiliary = network(x)
    assert logits.shape == auxiliary.shape == (2, 3, 32, 48)
    assert network.auxiliary.in_channels == network.dla_up.channels[2]  # stride 8
    network.eval()
    assert network(x).shape == (2, 3, 32, 48)


def test_checkpointing_changes_no_answer() -> None:
    torch.manual_seed(0)
    network = dla.create_model("dla34_half", task="segment", num_classes=3)
    x = torch.rand(2, 3, 32, 48)
    gradients = []
    for enable in (False, True):
        network.set_grad_checkpointing(enable)
        network.zero_grad()
        network(x).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
