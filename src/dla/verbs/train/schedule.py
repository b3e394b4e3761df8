"""The learning rate, by how far a run is."""

from __future__ import annotations

import math

from dla.recipes.schema import Recipe

__all__ = ["learning_rate"]


def learning_rate(recipe: Recipe, progress_epochs: float) -> float:
    """The rate after `progress_epochs` passes over the photos, fractions included."""
    s = recipe.schedule
    if progress_epochs < s.warmup_epochs:
        return recipe.lr * (s.warmup_from + (1 - s.warmup_from) * progress_epochs / s.warmup_epochs)
    if s.name == "constant":
        return recipe.lr
    if s.name == "steps":
        return recipe.lr * s.factor ** math.floor(progress_epochs / s.every + 1e-9)
    share = (progress_epochs - s.warmup_epochs) / max(recipe.epochs - s.warmup_epochs, 1e-9)
    return recipe.lr * (s.end + (1 - s.end) * 0.5 * (1 + math.cos(math.pi * share)))
