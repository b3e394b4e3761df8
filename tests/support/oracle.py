"""The independent implementation that the tests compare with, and how two networks are compared.

    from support.oracle import timm

timm imports torchvision, whose operators are missing beside some CPU-only builds of torch. timm needs their names
only, so that they are declared here where they do not load.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm as timm  # for other tests to import from here

LEVELS = tuple(f"level{i}" for i in range(6))


def timm_part(name: str) -> ModuleType:
    """A module of timm that `import timm` does not bring along, such as "optim"."""
    return import_module(f"timm.{name}")


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Give every batch norm weights, biases and statistics that are neither 0 nor 1."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=random)
            nn.init.normal_(module.bias, 0, 0.3, generator=random)
            nn.init.normal_(module.running_mean, 0, 0.3, generator=random)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=random)


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value of theirs, which must not be all zero."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    largest, difference = theirs.abs().max(), (ours - theirs).abs().max()
    assert torch.isfinite(difference)
    assert largest > 0
    return float(difference / largest)


def differences(ours: nn.Module, theirs: nn.Module, x_N3HW: Tensor) -> dict[str, float]:
    """The largest relative difference of each kind of tensor, over an evaluation and one training step.

    Both networks must have the same weights; both are left as they were, in evaluation mode.
    """
    evaluated = [_evaluate(net, x_N3HW) for net in (ours, theirs)]
    trained = [_train(net, x_N3HW) for net in (ours, theirs)]
    return {
        kind: max(relative(a, b) for a, b in zip(tensors, others, strict=True))
        for mine, their in (evaluated, trained)
        for (kind, tensors), others in zip(mine.items(), their.values(), strict=True)
    }


def _evaluate(net: nn.Module, x_N3HW: Tensor) -> dict[str, list[Tensor]]:
    net.eval()
    maps: list[Tensor] = []
    hooks = [net.get_submodule(name).register_forward_hook(lambda *call: maps.append(call[2])) for name in LEVELS]
    with torch.no_grad():
        logits_NK = net(x_N3HW)
    for hook in hooks:
        hook.remove()
    assert len(maps) == len(LEVELS)
    return {"logits": [logits_NK], "maps": maps}


def _train(net: nn.Module, x_N3HW: Tensor) -> dict[str, list[Tensor]]:
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    x_N3HW = x_N3HW.clone().requires_grad_()
    logits_NK = net.train()(x_N3HW)
    weight_NK = torch.randn(logits_NK.shape, generator=torch.Generator().manual_seed(1)).to(logits_NK)
    (logits_NK * weight_NK).sum().backward()
    found = {
        "train outputs": [logits_NK.detach()],
        "statistics": [buffer.clone() for name, buffer in net.named_buffers() if "running" in name],
        "gradients": [x_N3HW.grad, *(p.grad for p in net.parameters())],
    }
    net.zero_grad()
    net.eval().load_state_dict(before, strict=False)
    return found


def assert_begun_as_published(net: nn.Module) -> None:
    """Convolutions normal by fan-out without regard to groups, the classifier's bias uniform (PyTorch's default)."""
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().flatten()
            sigma = (2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)) ** 0.5
            n = weight.numel()
            assert abs(float(weight.std()) / sigma - 1) < 5.5 / (2 * n) ** 0.5, name
            assert abs(float(weight.mean())) < 5.5 * sigma / n**0.5, name
            assert n < 2000 or 3 * sigma < weight.abs().max() < 7 * sigma, f"{name} is not normal"
    bias, bound = net.fc.bias.detach(), net.fc.in_channels**-0.5
    assert 0.98 * bound < bias.abs().max() <= bound
    assert abs(float(bias.std()) / bound * 3**0.5 - 1) < 0.1
