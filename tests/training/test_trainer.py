"""The loop on a tiny network: options that may change the way but not the result, and those that change the result."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dla
from dla.images.preprocessing import Preprocessing
from dla.training.augment import BatchAugment
from dla.training.batches import TrainBatches
from dla.training.classify_task import ClassifyObjective, ClassifySamples, ClassifyValidation
from dla.training.distributed import Ranks
from dla.training.events import EpochEvent, StepEvent, TrainerCallback
from dla.training.loss import Criterion, balanced_weights, label_texts
from dla.training.model import InitialModel, freeze
from dla.training.recipe import (
    ComputeConfig,
    DistillConfig,
    EarlyStopConfig,
    EmaConfig,
    LossConfig,
    OptimizerConfig,
    Recipe,
    RegularizationConfig,
    ScheduleConfig,
)
from dla.training.recipe_input import AugmentConfig, InputConfig
from dla.training.task import Batch
from dla.training.trainer import Trainer
from dla.weights.model_folder import ModelConfig
from support.tiny import shallow

pytestmark = pytest.mark.slow

SIDE, CLASSES = 32, 3
RECIPE = Recipe(
    epochs=3, batch_size=12, lr=0.01, input=InputConfig({0: SIDE}), schedule=ScheduleConfig(warmup_epochs=0)
)
GENERATOR = np.random.default_rng(0)
TARGETS = np.arange(36) % CLASSES
PIXELS = np.clip(60 + 60 * TARGETS[:, None, None, None] + GENERATOR.integers(-40, 40, (36, SIDE, SIDE, 3)), 0, 255)
PIXELS = PIXELS.astype(np.uint8)


class Pictures:
    def __getitem__(self, row: int) -> Any:
        from PIL import Image

        return Image.fromarray(PIXELS[row])


def fit_of(recipe: Recipe, network: nn.Module | None = None, teacher: Any = None) -> Trainer:
    torch.manual_seed(0)
    network = network or shallow(drop_rate=recipe.regular.drop_rate).reset_classifier(CLASSES)
    freeze(network, recipe.freeze)
    config = ModelConfig("dla34", CLASSES)
    start = InitialModel(network, Preprocessing((SIDE, SIDE), crop_pct=1.0), config, ())
    weights_K = balanced_weights(torch.from_numpy(TARGETS), CLASSES)
    criterion = Criterion(recipe.loss, recipe.distill, weights_K if recipe.loss.class_weights == "balanced" else None)
    objective = ClassifyObjective(criterion, BatchAugment(recipe.augment), teacher)
    return Trainer(start, recipe, objective, torch.device("cpu"), Ranks())


def batches_of(recipe: Recipe, trainer: Trainer) -> TrainBatches:
    return TrainBatches(ClassifySamples(Pictures(), TARGETS, recipe, trainer.preprocessing), recipe, 0, Ranks())


def validation_of(trainer: Trainer) -> ClassifyValidation:
    return ClassifyValidation(Pictures(), TARGETS, trainer.preprocessing, 12, 0, trainer.device, trainer.ranks)


def batch(step: int = 0) -> Batch:
    rows = np.arange(12 * step, 12 * step + 12) % 36
    return Batch(PIXELS[rows], TARGETS[rows], rows)


def trained(recipe: Recipe, steps: int = 3, **options: Any) -> dict[str, Tensor]:
    trainer = fit_of(recipe, **options)
    for i in range(steps):
        trainer.step(batch(i), recipe.lr)
        trainer.position.step += 1
    return {k: v.clone() for k, v in trainer.network.state_dict().items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(((a[k] - b[k]).abs().max() / (b[k].abs().max() + 1e-9)).item() for k in a if a[k].is_floating_point())


class Epochs(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[EpochEvent] = []

    def on_epoch(self, epoch: EpochEvent, is_best: bool) -> None:
        self.seen.append(epoch)


def run(recipe: Recipe, trainer: Trainer | None = None) -> list[EpochEvent]:
    trainer, epochs = trainer or fit_of(recipe), Epochs()
    trainer.run(batches_of(recipe, trainer), validation_of(trainer), epochs)
    return epochs.seen


def test_twenty_steps_learn_twelve_photos_by_heart() -> None:
    whole = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    trainer = fit_of(replace(RECIPE, augment=whole))
    losses = [trainer.step(batch(), 0.05)[0] for _ in range(20)]
    assert losses[0] > 0.9
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "compute", [ComputeConfig(channels_last=False), ComputeConfig(checkpointing=True)], ids=["NCHW", "saving"]
)
def test_ways_to_compute_come_to_the_same(compute: ComputeConfig) -> None:
    trainer, plain = fit_of(replace(RECIPE, compute=compute)), fit_of(RECIPE)
    if compute.checkpointing:
        trainer.network.set_grad_checkpointing()
    assert trainer.step(batch(), 0.0)[0] == pytest.approx(plain.step(batch(), 0.0)[0], rel=1e-5)
    for ours, theirs in zip(trainer.network.parameters(), plain.network.parameters(), strict=True):
        assert nn.functional.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.9999


def test_a_compiled_network_takes_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch's compilers make of these networks is tested with the networks."""
    seen: list[Tensor] = []

    def compiled(network: nn.Module) -> Any:
        return lambda x: (seen.append(x), network(x))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    trainer = fit_of(replace(RECIPE, compute=ComputeConfig(compile=True)))
    assert trainer.step(batch(), 0.0) == fit_of(RECIPE).step(batch(), 0.0)
    assert len(seen) == 1
    assert not any("_orig_mod" in name for name in trainer.state()[0])


def test_accumulation_is_the_mean_of_the_parts_gradients() -> None:
    """With frozen statistics a batch in parts is the batch; the norms' own statistics go over each part."""
    recipe = replace(RECIPE, optimizer=OptimizerConfig(accumulate=3))
    gradients = []
    for each in (recipe, RECIPE):
        trainer = fit_of(each)
        trainer.network.eval()
        trainer.step(batch(), 0.0)
        gradients.append({k: p.grad for k, p in trainer.network.named_parameters()})
    assert largest_difference(*gradients) < 1e-4
    counts = [trained(each, 1)["base_layer.1.num_batches_tracked"].item() for each in (recipe, RECIPE)]
    assert counts == [3, 1]


def test_long_gradients_are_shortened() -> None:
    plain, clipped = fit_of(RECIPE), fit_of(replace(RECIPE, optimizer=OptimizerConfig(clip_norm=0.01)))
    for trainer in (plain, clipped):
        trainer.step(batch(), 0.0)
    norms = [math.sqrt(sum(p.grad.square().sum().item() for p in f.network.parameters())) for f in (plain, clipped)]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("through", ["stem", "level2", "level5"])
def test_what_is_frozen_stays_to_the_bit(through: str) -> None:
    recipe = replace(RECIPE, freeze=through)
    before = {k: v.clone() for k, v in fit_of(recipe).network.state_dict().items()}
    after = trained(recipe)
    stages = ["base_layer", *(f"level{i}" for i in range(6))]
    frozen = tuple(f"{s}." for s in stages[: {"stem": 1, "level2": 4, "level5": 7}[through]])
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith(frozen), name


def test_a_loss_that_is_not_finite_stops_and_changes_no_weight() -> None:
    trainer = fit_of(RECIPE)
    with torch.no_grad():
        trainer.network.fc.bias.fill_(math.inf)
    before = {k: p.clone() for k, p in trainer.network.named_parameters()}
    trainer.position.epoch, trainer.position.step = 2, 6
    with pytest.raises(dla.DlaError, match=r"the loss is nan at epoch 3, step 7. Try a lower --lr") as caught:
        trainer.step(batch(), 0.1)
    assert caught.value.exit_code == 1
    assert all(torch.equal(p, before[k]) for k, p in trainer.network.named_parameters())


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    trainer = fit_of(RECIPE)
    trainer.network.fc.weight.register_hook(lambda g: g * math.inf)
    before = {k: p.clone() for k, p in trainer.network.named_parameters()}
    with pytest.raises(dla.DlaError, match="the gradient norm is (nan|inf) at epoch 1, step 1"):
        trainer.step(batch(), 0.1)
    assert all(torch.equal(p, before[k]) for k, p in trainer.network.named_parameters())


def test_early_stopping() -> None:
    recipe = replace(RECIPE, epochs=30, lr=1e-9, stop=EarlyStopConfig(patience=2))
    assert len(run(recipe)) < 30
    figures = [(e.figures["top1"], -e.figures["val_loss"]) for e in run(recipe)]
    assert figures.index(max(figures)) == len(figures) - 3


OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": OptimizerConfig("adamw", weight_decay=0.01, layer_decay=0.8, clip_norm=1.0), "lr": 0.003},
    "mixing": {"augment": AugmentConfig(mixup=0.4, cutmix=1.0, brightness=0.2, erase=0.5, rand_operations=1)},
    "average": {"average": EmaConfig(0.9), "optimizer": OptimizerConfig(accumulate=2)},
    "balanced": {"loss": LossConfig(0.1, "balanced", "balanced"), "stop": EarlyStopConfig(2)},
    "sizes": {"input": InputConfig({0: 32, 1: [16, 32]}), "freeze": "level0"},
    "dropout": {"regular": RegularizationConfig(drop_rate=0.5)},
    "schedule": {"schedule": ScheduleConfig("steps", 0, every=1)},
    "seed": {"seed": 1},
}


@pytest.fixture(scope="module")
def plain() -> dict[str, Tensor]:
    """Where two epochs without any option end."""
    trainer = fit_of(replace(RECIPE, epochs=2))
    run(trainer.recipe, trainer)
    return trainer.state()[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_with_each_option_differs_and_goes_on_from_its_state_to_the_bit(
    name: str, plain: dict[str, Tensor]
) -> None:
    """What is carried over is written as a checkpoint would: tensors by name, facts as JSON."""
    recipe = replace(RECIPE, epochs=2, **OPTIONS[name])
    whole = fit_of(recipe)
    figures = run(recipe, whole)
    assert largest_difference(whole.state()[0], {**whole.state()[0], **plain}) > 0

    first = fit_of(recipe)
    saved: list[Any] = []

    class Save(TrainerCallback):
        def on_step(self, step: StepEvent) -> None:
            if (step.epoch, step.step) == (2, 2):
                tensors, facts = first.state()
                saved.append(({k: v.clone() for k, v in tensors.items()}, json.dumps(facts, allow_nan=False)))

    first.run(batches_of(recipe, first), validation_of(first), Save())
    second = fit_of(recipe)
    second.load_state(saved[0][0], json.loads(saved[0][1]))
    rest = run(recipe, second)
    assert [(e.loss, e.figures) for e in rest] == [(e.loss, e.figures) for e in figures[1:]]
    wanted, found = whole.state()[0], second.state()[0]
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[k], found[k]) for k in wanted)


class Echo:
    """A teacher that is sure of the class after the right one."""

    sees_mixed = False

    def __call__(self, pixels_N3HW: Tensor, rows_N: Any) -> Tensor:
        assert pixels_N3HW.min() >= 0
        assert 200 < pixels_N3HW.max() <= 255
        return 9.0 * nn.functional.one_hot(torch.from_numpy((TARGETS[rows_N] + 1) % CLASSES), CLASSES).float()


def test_a_teacher_is_followed() -> None:
    recipe = replace(RECIPE, epochs=20, lr=0.03, seed=1, distill=DistillConfig(weight=1.0, temperature=1.0))
    assert run(recipe, fit_of(recipe, teacher=Echo()))[-1].figures["top1"] == 0.0


def test_scores_of_mixed_photos_mix_as_the_photos_do() -> None:
    trainer = fit_of(
        replace(RECIPE, augment=AugmentConfig(mixup=1.0), distill=DistillConfig(temperature=2.0)), teacher=Echo()
    )
    _, labels = trainer.prepare(batch())
    assert labels.shares_N is not None
    assert labels.others_N is not None
    own, other = labels.targets_N.tolist(), labels.others_N.tolist()
    expected = ["abc"[a] if a == b else f"{'abc'[a]} + {'abc'[b]}" for a, b in zip(own, other, strict=True)]
    assert label_texts(labels, "abc") == expected
    soft = (9.0 / 2 * torch.eye(CLASSES)).softmax(1)
    own, other = (soft[(t + 1) % CLASSES] for t in (labels.targets_N, labels.others_N))
    share = labels.shares_N[:, None]
    torch.testing.assert_close(labels.teacher_NK, (1 - share) * own + share * other)


def test_the_mosaic_is_what_the_network_sees() -> None:
    trainer = fit_of(RECIPE)
    x_N3HW, labels = trainer.prepare(batch())
    names = [f"class {k}" for k in range(CLASSES)]
    assert label_texts(labels, names) == [names[k] for k in TARGETS[:12]]
    assert (trainer.pixels(x_N3HW) == PIXELS[:12]).all()
    assert x_N3HW.is_contiguous(memory_format=torch.channels_last)


def test_the_logits_are_those_of_the_weights_as_stored() -> None:
    trainer = fit_of(replace(RECIPE, average=EmaConfig(0.9)))
    trainer.step(batch(), 1e-4)
    network = trainer.stored().eval()
    for name, tensor in network.state_dict().items():
        assert name.endswith(("running_mean", "running_var", "tracked")) or torch.equal(tensor, tensor.half().float())
    logits_NK = validation_of(trainer).logits(trainer.stored())
    x_N3HW, _ = trainer.prepare(Batch(PIXELS, TARGETS, np.arange(36)))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits_NK), network(x_N3HW), rtol=1e-4, atol=1e-4)
