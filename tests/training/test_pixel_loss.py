"""The losses of dense networks, against PyTorch's own and a definition by sets."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dla.training.augment import BatchAugment
from dla.training.edges_task import consensus, weigh_sides
from dla.training.pixel_loss import PixelLabels, PixelObjective, balanced_sides, class_weights, lovasz_softmax
from dla.training.recipe import LossConfig
from dla.training.recipe_input import AugmentConfig
from dla.training.task import Batch

N, K, H, W = 4, 3, 6, 5
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def objective(**loss: Any) -> PixelObjective:
    return PixelObjective(LossConfig(**loss), BatchAugment(AugmentConfig()), lambda targets, known: WEIGHTS[targets])


def labelled(seed: int = 0) -> tuple[Tensor, np.ndarray]:
    random = np.random.default_rng(seed)
    targets = random.choice(np.array([0, 1, 2, 255], np.uint8), (N, H, W))
    targets[1] = 255  # a photo without a label
    return torch.from_numpy(random.normal(size=(N, K, H, W)).astype(np.float32)), targets


def of(made: PixelObjective, logits: Tensor, targets: np.ndarray, parts: int = 1) -> float:
    batch = Batch(np.zeros((N, H, W, 3), np.uint8), targets, np.arange(N))
    _, labels = made.prepare(torch.zeros(N, 3, H, W), batch)
    weight = made.weights(labels).mean().item()
    size = N // parts
    losses = [made.loss(logits[i : i + size], labels.part(i, i + size), weight) for i in range(0, N, size)]
    return float(sum(losses) / parts)


def test_the_loss_is_that_of_pytorch_over_all_pixels_that_count() -> None:
    logits, targets = labelled()
    wanted = F.cross_entropy(logits, torch.from_numpy(targets).long(), WEIGHTS, ignore_index=255)
    assert of(objective(), logits, targets) == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("loss", [{}, {"lovasz": 1.0}, {"ohem": 0.25}, {"label_smoothing": 0.1}], ids=str)
def test_a_batch_in_parts_has_the_same_loss(loss: dict[str, Any]) -> None:
    logits, targets = labelled()
    whole = of(objective(**loss), logits, targets)
    assert [of(objective(**loss), logits, targets, parts) for parts in (2, 4)] == pytest.approx([whole] * 2, rel=1e-5)


def test_what_is_answered_at_ignored_pixels_changes_no_bit() -> None:
    logits, targets = labelled()
    ignored = torch.from_numpy(targets == 255)[:, None].expand_as(logits)
    changed = logits.where(~ignored, torch.randn(logits.shape))
    made = objective(lovasz=1.0, label_smoothing=0.1)
    values = []
    for each in (logits, changed):
        each = each.clone().requires_grad_()
        batch = Batch(np.zeros((N, H, W, 3), np.uint8), targets, np.arange(N))
        _, labels = made.prepare(torch.zeros(N, 3, H, W), batch)
        loss = made.loss(each, labels, 1.0)
        loss.backward()
        values.append((loss.item(), made.accuracy(each, labels), each.grad[~ignored].tolist()))
        assert not each.grad[ignored].any()
    assert values[0] == values[1]


def test_a_batch_without_labels_has_no_loss() -> None:
    logits, targets = labelled()
    targets[:] = 255
    assert of(objective(lovasz=1.0), logits, targets) == 0


def test_the_auxiliary_loss_is_added() -> None:
    logits, targets = labelled()
    other, _ = labelled(1)
    made = objective(auxiliary=0.4)
    batch = Batch(np.zeros((N, H, W, 3), np.uint8), targets, np.arange(N))
    _, labels = made.prepare(torch.zeros(N, 3, H, W), batch)
    alone = [made.loss(each, labels, 1.0).item() for each in (logits, other)]
    assert made.loss((logits, other), labels, 1.0).item() == pytest.approx(alone[0] + 0.4 * alone[1], rel=1e-6)


def test_lovasz_is_the_extension_of_the_jaccard_loss() -> None:
    """For certain answers it is the mean over the photo's classes of 1 - IoU, whatever is wrong."""
    for wrong in itertools.product((0, 1), repeat=6):
        targets_P = torch.tensor([0, 0, 0, 1, 1, 2])
        answers_P = torch.where(torch.tensor(wrong) > 0, (targets_P + 1) % 3, targets_P)
        logits = 200.0 * F.one_hot(answers_P, 3).float().T.reshape(1, 3, 2, 3)
        labels = PixelLabels(targets_P.reshape(1, 2, 3), torch.ones(1, 2, 3))
        losses = []
        for k in range(3):
            truth, answer = targets_P == k, answers_P == k
            losses.append(1 - ((truth & answer).sum() / (truth | answer).sum()).item())
        assert lovasz_softmax(logits, labels).item() == pytest.approx(sum(losses) / 3, abs=1e-5)


@pytest.mark.parametrize("kind", ["sqrt", "median"])
def test_class_weights(kind: str) -> None:
    shares = np.array([0.6, 0.3, 0.1, 0.0])
    weights = class_weights(LossConfig(class_weights=kind), shares).numpy()  # type: ignore[arg-type]
    assert weights @ shares == pytest.approx(1, abs=1e-5)
    power = 0.5 if kind == "sqrt" else 1
    assert weights[2] / weights[0] == pytest.approx(6**power, rel=1e-4)
    assert weights[3] == 0


def test_no_class_weighs_more_than_eight_pixels() -> None:
    weights = class_weights(LossConfig(class_weights="median"), np.array([0.999, 0.001])).numpy()
    assert weights[1] == pytest.approx(8)


def test_both_sides_of_a_boundary_weigh_the_same() -> None:
    targets = torch.tensor([[[1, 0, 0, 0], [1, 0, 0, 0]]])
    known = torch.tensor([[[True, True, True, False], [True, True, True, True]]])
    weights = balanced_sides(targets, known) * known
    assert weights[targets == 1].sum() == pytest.approx(weights[targets == 0].sum())
    fixed = weigh_sides(LossConfig(class_weights=(1.0, 10.0)))(targets, known)
    assert fixed[targets == 1].tolist() == [10, 10]
    assert fixed[targets == 0].unique().tolist() == [1]


def test_a_boundary_is_what_three_of_ten_annotators_mark() -> None:
    annotators = [np.array([[i < n for n in (0, 2, 3, 10)]]) for i in range(10)]
    assert consensus(annotators).tolist() == [[0, 255, 1, 1]]
