"""Augmentation of whole batches by kornia, on the network's device.

x_N3HW holds pixels from 0 to 1. Random numbers are PyTorch's, which the training loop seeds before each step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dla.errors import UnavailableError, pip_line
from dla.training.recipe_input import AugmentConfig

if TYPE_CHECKING:
    from types import ModuleType

GREY = 0.5


@dataclass(frozen=True)
class Mix:
    """How a batch was mixed: photo n is 1 - shares_N[n] of itself plus shares_N[n] of photo partners_N[n]."""

    partners_N: Tensor
    shares_N: Tensor


class BatchAugment:
    """Apply the recipe's colour changes, RandAugment, erasing and mixing; `enabled` is False if it has none."""

    def __init__(self, augment: AugmentConfig) -> None:
        self.augment = augment
        self.steps: list[nn.Module] = []
        self.mixers: list[Any] = []
        colour = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
        self.enabled = any([*colour, augment.rand_operations, augment.erase, augment.mixup, augment.cutmix])
        if not self.enabled:
            return
        kornia = _kornia()
        if any(colour):
            self.steps.append(kornia.ColorJitter(*colour))
        if augment.rand_operations:
            self.steps.append(kornia.auto.RandAugment(augment.rand_operations, augment.rand_magnitude))
        if augment.erase:
            self.steps.append(kornia.RandomErasing(p=augment.erase, value=GREY))
        keys = ["input", "class"]
        if augment.mixup:
            self.mixers.append(kornia.RandomMixUpV2(data_keys=keys))
        if augment.cutmix:
            beta = torch.tensor(augment.cutmix)
            self.mixers.append(kornia.RandomCutMixV2(beta=beta, data_keys=keys, use_correct_lambda=True))

    def __call__(self, x_N3HW: Tensor) -> tuple[Tensor, Mix | None]:
        """Return the augmented batch (N, 3, H, W), and how its photos were mixed, or None."""
        for step in self.steps:
            x_N3HW = step(x_N3HW)
        if not self.mixers or torch.rand(()) >= self.augment.mix_probability:
            return x_N3HW, None
        mixer = self.mixers[int(torch.randint(len(self.mixers), ()))]
        rows_N = torch.arange(len(x_N3HW), device=x_N3HW.device)
        params: dict[str, Any] = mixer.forward_parameters(x_N3HW.shape)
        is_mixup = "mixup_lambdas" in params
        if is_mixup:  # kornia draws them uniformly
            beta = torch.distributions.Beta(self.augment.mixup, self.augment.mixup)
            params["mixup_lambdas"] = beta.sample((len(x_N3HW),))
        x_N3HW, mixed = mixer(x_N3HW, rows_N, params=params)
        # kornia's labels are (own, other, share): the share of the other photo in mixup, of the photo itself in CutMix
        _, partners_N, share_N = mixed.reshape(-1, 3).unbind(1)
        return x_N3HW, Mix(partners_N.long(), share_N if is_mixup else 1 - share_N)


def _kornia() -> ModuleType:
    try:
        import kornia.augmentation
    except ImportError:
        what = "colour, RandAugment, erasing, mixup and CutMix"
        raise UnavailableError(f"{what} need kornia: {pip_line('train')}") from None
    return kornia.augmentation
