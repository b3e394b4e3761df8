"""What kornia does to a batch: each field acts, and a mixed photo is the sum that its shares say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dla.training.augment import BatchAugment
from dla.training.recipe_input import AugmentConfig

X_N3HW = torch.rand(16, 3, 24, 20, generator=torch.Generator().manual_seed(1))


def applied(seed: int = 0, **fields: float) -> torch.Tensor:
    torch.manual_seed(seed)
    return BatchAugment(AugmentConfig(**fields))(X_N3HW.clone())[0]  # type: ignore[arg-type]


def test_without_any_nothing_happens() -> None:
    augment = BatchAugment(AugmentConfig())
    assert not augment.enabled
    assert augment(X_N3HW) == (X_N3HW, None)


@pytest.mark.parametrize(
    "fields",
    [{"brightness": 0.4}, {"contrast": 0.4}, {"saturation": 0.4}, {"hue": 0.2}, {"rand_operations": 2}, {"erase": 1.0},
     {"mixup": 0.4}, {"cutmix": 1.0}],
    ids=lambda f: next(iter(f)),
)  # fmt: skip
def test_each_field_acts_the_same_for_the_same_seed(fields: dict[str, float]) -> None:
    once = applied(**fields)
    assert once.shape == X_N3HW.shape
    assert not torch.equal(once, X_N3HW)
    assert torch.equal(once, applied(**fields))
    assert not torch.equal(once, applied(1, **fields))


def test_brightness_is_a_factor_for_each_photo() -> None:
    half = X_N3HW * 0.5  # none of it is cut off at 1
    torch.manual_seed(0)
    found, _ = BatchAugment(AugmentConfig(brightness=0.3))(half.clone())
    factors = found / half
    assert factors.flatten(1).std(1).max() < 1e-4
    assert 0.7 <= factors.min() < 0.9 < 1.1 < factors.max() <= 1.3


def test_erasing_leaves_grey_rectangles() -> None:
    changed = (applied(erase=1.0) != X_N3HW).all(1)
    for photo, mask in zip(applied(erase=1.0), changed, strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()
        assert (photo[:, mask] == 0.5).all()
    assert 0.02 <= changed.float().mean() <= 0.33


def test_a_mixed_photo_is_the_sum_of_two() -> None:
    torch.manual_seed(0)
    found, mix = BatchAugment(AugmentConfig(mixup=0.4))(X_N3HW.clone())
    assert mix is not None
    share = mix.shares_N[:, None, None, None]
    torch.testing.assert_close(found, (1 - share) * X_N3HW + share * X_N3HW[mix.partners_N])


def test_a_cut_photo_has_the_share_of_its_pixels() -> None:
    torch.manual_seed(0)
    found, mix = BatchAugment(AugmentConfig(cutmix=1.0))(X_N3HW.clone())
    assert mix is not None
    other = X_N3HW[mix.partners_N]
    for n in range(len(found)):
        from_other = (found[n] != X_N3HW[n]).all(0)
        assert torch.equal(found[n], torch.where(from_other, other[n], X_N3HW[n]))
        if mix.partners_N[n] != n:
            assert from_other.float().mean().item() == pytest.approx(mix.shares_N[n].item(), abs=1e-6)


def test_mixups_shares_are_of_the_beta_distribution() -> None:
    augment, shares = BatchAugment(AugmentConfig(mixup=0.3)), []
    torch.manual_seed(0)
    for _ in range(60):
        mix = augment(X_N3HW[:, :, :1, :1])[1]
        assert mix is not None
        shares.append(mix.shares_N.numpy())
    found, a = np.concatenate(shares), 0.3
    assert found.mean() == pytest.approx(0.5, abs=float(4 * found.std() / len(found) ** 0.5))
    assert found.var() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.1)


def test_some_batches_are_left_unmixed_and_the_two_kinds_take_turns() -> None:
    augment = BatchAugment(AugmentConfig(mixup=1.0, cutmix=1.0, mix_probability=0.5))
    torch.manual_seed(0)
    kinds = []
    for _ in range(80):
        found, mix = augment(X_N3HW[:4].clone())
        half = mix is not None and bool(((found != X_N3HW[:4]) & (found != X_N3HW[:4][mix.partners_N])).any())
        kinds.append("none" if mix is None else "mixup" if half else "cutmix")
    assert 25 <= kinds.count("none") <= 55
    assert kinds.count("mixup") >= 8
    assert kinds.count("cutmix") >= 8
