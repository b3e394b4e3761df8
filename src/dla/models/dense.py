"""Dense prediction: a class, or a boundary, for each pixel, by a backbone, the decoder `DLAUp` and a 1x1 classifier.

Section 4.2 and 4.3 of "Deep Layer Aggregation". Attribute names must not change: the authors' checkpoints use them.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from dla.errors import UsageError
from dla.models.backbone import Backbone
from dla.models.decoder import DLAUp, upsampling
from dla.models.dla import DLA
from dla.models.feature_net import FeatureNet
from dla.models.registry import DOWN_RATIOS

AUXILIARY_STRIDE = 8  # of the map that the auxiliary classifier sees


class Dense(nn.Module):
    """Images x_N3HW -> logits (N, num_classes, H, W), for any H, W >= 1.

    The classifier runs at the stride of the decoder; its logits are interpolated, which equals interpolating first, at
    a fraction of the cost.

    Args:
        base: returns the maps that the decoder takes, finest first.
        dla_up: the decoder.
        num_classes: K; 1 for boundaries, where the sigmoid of the logit is the probability.
        up: "bilinear", or "authors": a fixed transposed convolution with zeros beyond the border, as in the authors'
            checkpoints.
    """

    def __init__(self, base: nn.Module, dla_up: DLAUp, num_classes: int, up: str = "bilinear") -> None:
        super().__init__()
        self.down_ratio = dla_up.strides[0]
        self.base = base
        self.dla_up = dla_up
        self.reset_classifier(num_classes, up)
        self.auxiliary: nn.Module | None = None
        self.pretrained_cfg = dict[str, Any]()

    @classmethod
    def over(cls, backbone: nn.Module, num_classes: int, down_ratio: int = 2, up: str = "bilinear") -> Self:
        """Return a dense network over a `DLA`, or over any module that `DLAUp.over` takes.

        Args:
            backbone: its parameters are shared, not copied. The classifier of a `DLA` is left out.
            num_classes: K.
            down_ratio: stride of the finest map that is decoded, in pixels: 2, 4 or 8.
            up: as for `Dense`.

        Raises:
            UsageError: another `down_ratio`, or the backbone has no map of that stride.
        """
        if down_ratio not in DOWN_RATIOS:
            raise UsageError(f"down_ratio is {down_ratio}. Allowed: {', '.join(map(str, DOWN_RATIOS))}")
        base: nn.Module
        if isinstance(backbone, DLA):
            strides = [info["reduction"] for info in backbone.feature_info]
            first = max(1, strides.index(down_ratio))
            base, channels = FeatureNet(backbone, range(first, len(strides))), backbone.channels[first:]
            strides = strides[first:]
            cfg = backbone.pretrained_cfg
            if cfg.get("num_classes") is not None:
                cfg = {**cfg, "num_classes": num_classes}
        else:
            base = whole = Backbone.of(backbone)
            first = next((i for i, stride in enumerate(whole.strides) if stride >= down_ratio), -1)
            if first < 0 or whole.strides[first] != down_ratio:
                raise UsageError(f"the backbone's maps have strides {whole.strides}. None is down_ratio {down_ratio}")
            base = _Coarser(whole, first) if first else whole
            channels, strides, cfg = list(whole.channels[first:]), list(whole.strides[first:]), {}
        network = cls(base, DLAUp(channels, strides, up), num_classes, up)
        network.pretrained_cfg = cfg
        return network

    def reset_classifier(self, num_classes: int, up: str = "bilinear") -> None:
        """Replace the classifier by an untrained one for `num_classes` classes; `up` is as for `Dense`.

        Raises:
            UsageError: there are no classes.
        """
        if num_classes < 1:
            raise UsageError(f"num_classes is {num_classes}. Allowed: 1 for boundaries, 2 or more for segmentation")
        self.num_classes = num_classes
        self.fc = nn.Sequential(nn.Conv2d(self.dla_up.channels[0], num_classes, 1))
        self.up = upsampling(up, num_classes, self.down_ratio, 1).requires_grad_(False)

    def add_auxiliary(self) -> None:
        """Add a classifier of the backbone's map of stride 8, whose loss supports training (Zhao et al. 2017).

        While training, `forward` then returns its logits too. It is no part of a stored network.
        """
        strides = self.dla_up.strides
        self._place = next(i for i, stride in enumerate(strides) if stride >= AUXILIARY_STRIDE)
        self.auxiliary = nn.Conv2d(self.dla_up.channels[self._place], self.num_classes, 1)
        self._auxiliary_up = upsampling("bilinear", self.num_classes, strides[self._place], 1)

    def forward(self, x: Tensor) -> Any:
        """Return the logits (N, K, H, W) of images x_N3HW; a pair with the auxiliary ones, while training with them."""
        maps = self.base(x)
        logits = self.up(self.fc(self.dla_up(maps)), x.shape[2:])
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self._auxiliary_up(self.auxiliary(maps[self._place]), x.shape[2:])

    def stages(self) -> tuple[nn.Module, ...]:
        """Return the stem and the six levels of a DLA backbone, in the order they run."""
        assert isinstance(self.base, FeatureNet)
        return tuple(self.base.children())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns of `DLA.group_matcher` for the backbone; the decoder and the classifier match none."""
        trees_before_nodes = [
            (r"^base\.level(\d+)\.tree(\d+)", None),
            (r"^base\.level(\d+)\.root", (2,)),
            (r"^base\.level(\d+)", (1,)),
        ]
        return {"stem": r"^base\.base_layer", "blocks": r"^base\.level(\d+)" if coarse else trees_before_nodes}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set it as `DLA.set_grad_checkpointing` does, for a DLA backbone."""
        assert isinstance(self.base, FeatureNet)
        self.base.set_grad_checkpointing(enable)


class _Coarser(nn.Module):
    """The maps of a backbone from one on."""

    def __init__(self, module: Backbone, first: int) -> None:
        super().__init__()
        self.module, self.first = module, first

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the coarser maps of images x_N3HW, finest first."""
        return self.module(x)[self.first :]  # type: ignore[no-any-return]
