"""The loss against PyTorch's with soft targets, timm's labels of mixed photos and scikit-learn's class weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from dla.training.loss import Criterion, Labels, balanced_weights
from dla.training.recipe import DistillConfig, LossConfig
from support.oracle import timm_part

N, K = 9, 6


def case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits_NK = 3 * torch.randn(N, K, generator=g, dtype=torch.float64)
    own_N, other_N = (torch.randint(K, (N,), generator=g) for _ in range(2))
    return logits_NK, own_N, other_N, torch.rand(N, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_labels_alone(smoothing: float) -> None:
    logits_NK, own_N, _, _ = case()
    weights_K = torch.rand(K, dtype=torch.float64) + 0.1
    for weights in (None, weights_K):
        found = Criterion(LossConfig(smoothing), DistillConfig(), weights)(logits_NK, Labels(own_N))
        loss_N = torch.nn.CrossEntropyLoss(label_smoothing=smoothing, reduction="none")(logits_NK, own_N)
        weight_N = torch.ones(N) if weights is None else weights[own_N]
        wanted = (weight_N * loss_N).sum() / weight_N.sum()
        if not smoothing:
            assert wanted.item() == pytest.approx(torch.nn.CrossEntropyLoss(weights)(logits_NK, own_N).item(), rel=1e-7)
        assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_mixed_photo_has_timms_mixed_label(smoothing: float) -> None:
    logits_NK, own_N, _, _ = case()
    other_N = own_N.flip(0)  # timm mixes a batch with itself reversed, all by one share
    label_NK = timm_part("data.mixup").mixup_target(own_N, K, lam=0.3, smoothing=smoothing).double()
    wanted = timm_part("loss").SoftTargetCrossEntropy()(logits_NK, label_NK)
    share_N = torch.full((N,), 0.7, dtype=torch.float64)
    found = Criterion(LossConfig(smoothing), DistillConfig())(logits_NK, Labels(own_N, other_N, share_N))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_each_photo_has_its_own_share() -> None:
    logits_NK, own_N, other_N, share_N = case()
    label_NK = (1 - share_N)[:, None] * F.one_hot(own_N, K) + share_N[:, None] * F.one_hot(other_N, K)
    wanted = F.cross_entropy(logits_NK, label_NK)
    found = Criterion(LossConfig(), DistillConfig())(logits_NK, Labels(own_N, other_N, share_N))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_class_weights_of_mixed_photos_mix_too() -> None:
    logits_NK, own_N, other_N, share_N = case()
    weights_K = torch.arange(1.0, K + 1, dtype=torch.float64)
    log_NK = logits_NK.log_softmax(1).numpy()
    total = weight = 0.0
    for n in range(N):
        for label, share in ((own_N[n], 1 - share_N[n]), (other_N[n], share_N[n])):
            total -= float(share * weights_K[label]) * log_NK[n, label]
            weight += float(share * weights_K[label])
    found = Criterion(LossConfig(), DistillConfig(), weights_K)(logits_NK, Labels(own_N, other_N, share_N))
    assert found.item() == pytest.approx(total / weight, rel=1e-12)


def test_balanced_weights_are_scikit_learns() -> None:
    targets_N = torch.tensor([0] * 7 + [1] * 2 + [2] * 11)
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=targets_N.numpy())
    assert balanced_weights(targets_N, 3).numpy() == pytest.approx(wanted, rel=1e-6)


def test_a_teacher_has_its_share_of_the_loss() -> None:
    """Hinton et al. 2015, equation by equation."""
    logits_NK, own_N, _, _ = case()
    teacher_NK = 2 * torch.randn(N, K, dtype=torch.float64)
    t, share = 3.0, 0.6
    p, q = (teacher_NK / t).softmax(1).numpy(), (logits_NK / t).softmax(1).numpy()
    wanted = (1 - share) * F.cross_entropy(logits_NK, own_N).item() + share * t**2 * np.sum(p * np.log(p / q)) / N
    criterion = Criterion(LossConfig(), DistillConfig(weight=share, temperature=t))
    found = criterion(logits_NK, Labels(own_N, teacher_NK=(teacher_NK / t).softmax(1)))
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_parts_of_a_batch_sum_to_it() -> None:
    logits_NK, own_N, other_N, share_N = case()
    labels = Labels(own_N, other_N, share_N, logits_NK.flip(1).softmax(1))
    criterion = Criterion(LossConfig(0.1), DistillConfig(weight=0.5))
    parts = [criterion(logits_NK[i : i + 3], labels.part(i, i + 3)).item() for i in (0, 3, 6)]
    assert np.mean(parts) == pytest.approx(criterion(logits_NK, labels).item(), rel=1e-12)


@pytest.mark.parametrize("counts", [[1000, 40], [1000, 10], [240, 240, 240, 240, 5], [240, 240, 240, 240, 0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_best_answer_to_a_known_class_is_that_class(counts: list[int], smoothing: float) -> None:
    """Where a network knows each photo's class, the minimum of the loss names it, however rare another class is."""
    classes = len(counts)
    targets_N = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    criterion = Criterion(LossConfig(smoothing), DistillConfig(), balanced_weights(targets_N, classes))
    logits_KK = torch.zeros(classes, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits_KK], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = criterion(logits_KK[targets_N], Labels(targets_N))
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    present = [k for k, n in enumerate(counts) if n]
    assert logits_KK.argmax(1)[present].tolist() == present


def test_a_class_without_photos_weighs_nothing() -> None:
    weights_K = balanced_weights(torch.tensor([0, 0, 2]), 3)
    assert weights_K.tolist() == pytest.approx([0.75, 0, 1.5])


@pytest.mark.parametrize("mixed", [False, True])
def test_the_weighted_loss_does_not_depend_on_how_a_batch_is_parted(mixed: bool) -> None:
    logits_NK, own_N, other_N, share_N = case()
    labels = Labels(own_N, other_N, share_N) if mixed else Labels(own_N)
    weights_K = torch.arange(1.0, K + 1, dtype=torch.float64)
    criterion = Criterion(LossConfig(0.1), DistillConfig(), weights_K)
    weights_N = criterion.photo_weights(labels)
    assert weights_N is not None
    mean = weights_N.mean().item()
    parts = [criterion(logits_NK[i : i + 3], labels.part(i, i + 3), mean).item() for i in (0, 3, 6)]
    assert np.mean(parts) == pytest.approx(criterion(logits_NK, labels).item(), rel=1e-12)
