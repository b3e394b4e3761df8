"""Grad-CAM (Selvaraju et al. 2017), and the mean activation of every level and node, in PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from dla.engines.base import Engine, NetworkEngine
from dla.engines.torch import TorchEngine
from dla.models.build import build
from dla.models.nodes import nodes
from dla.options import cores
from dla.types import Array
from dla.weights.load import load_state
from dla.weights.model_folder import ModelConfig


class TappedNetwork:
    """The network of an engine in PyTorch, with access to its maps. `name` is that of what computes it."""

    def __init__(self, engine: Engine, config: ModelConfig) -> None:
        with torch.device("meta"):
            self.skeleton = build(config.architecture, num_classes=config.num_classes, **config.model_args)
        self.engine = engine if isinstance(engine, TorchEngine) else self._in_torch(engine)
        self.name = self.engine.name

    def _in_torch(self, engine: Engine) -> TorchEngine:
        assert isinstance(engine, NetworkEngine)
        network = engine.network
        load_state(self.skeleton, {name: torch.from_numpy(np.array(a)) for name, a in network.state.items()})
        scale_shift = network.scale_3, network.shift_3
        # changing PyTorch's number of threads takes time, so only a number that was asked for is set
        threads = None if engine.threads == cores() else engine.threads
        return TorchEngine(self.skeleton.eval(), *scale_shift, "cpu", threads=threads)

    def places(self) -> dict[str, tuple[int, int]]:
        """Return channels and stride of each level and aggregation node, by name, in the order they run."""
        first = self.skeleton.feature_info[:2]  # these levels have no nodes; each other level ends in one
        levels = {info["module"]: (info["num_chs"], info["reduction"]) for info in first}
        return levels | {n.name: (n.channels, n.stride) for n in nodes(self.skeleton)}

    @torch.inference_mode()
    def mean_activations(self, names: tuple[str, ...], pixels_1HW3: Array) -> list[Array]:
        """Return the mean over the channels of the map at each node, (h, w) float32, from one forward pass."""
        *maps, _ = self.engine.tap(names, pixels_1HW3)
        return [map_1Chw[0].float().mean(0).cpu().numpy() for map_1Chw in maps]

    def grad_cam(
        self, pixels_1HW3: Array, at: str, target: int | None, against: int | None
    ) -> tuple[int, Array, Array]:
        """Return the explained class, by default the most probable one, its map (h, w) and the logits (K,).

        The map is the sum over the channels of the node's map, each weighted by the mean gradient of the logit, or of
        the difference of both logits. Negative values are kept.
        """
        with torch.enable_grad():
            map_1Chw, logits_1K = self.engine.tap((at,), pixels_1HW3)
            chosen = int(logits_1K[0].argmax()) if target is None else target
            score = logits_1K[0, chosen] - (0 if against is None else logits_1K[0, against])
            (gradient_1Chw,) = torch.autograd.grad(score, map_1Chw)
        weighted_1Chw = gradient_1Chw.mean((2, 3), keepdim=True) * map_1Chw.detach()
        explained_hw = weighted_1Chw.float().sum(1)[0]
        return chosen, explained_hw.cpu().numpy(), logits_1K.detach()[0].float().cpu().numpy()
