"""Parameters and multiply-accumulates of a network, from tensor names and shapes; needs no torch, so it is fast."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

LayerShapes = Mapping[str, tuple[int, ...]]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_LEVEL = re.compile(r"(?:base\.)?level([0-5])\.")
_FIRST_BLOCK = re.compile(r"((?:base\.)?level[2-5](?:\.tree1)+)\.conv1\.weight")
_DECODER = re.compile(r"dla_up\.ida_(\d+)\.(\w+)_\d+\.")
_COARSEST = 5  # level


def parameters(shapes: LayerShapes) -> int:
    """Return the number of trainable values: all but the statistics of batch-norm."""
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_STATISTICS))


def macs(shapes: LayerShapes, size: tuple[int, int], output_stride: int = 32) -> int:
    """Return the multiply-accumulates of all convolutions and the classifier for an image of `size` (height, width).

    `shapes` are those of the state dict of a `DLA`, or of a `Dense` network over one. Interpolation does not count.
    """
    total = 0
    for name, shape in shapes.items():
        if len(shape) == 4:
            stride = min(2 ** _level(name, shapes), output_stride)
            positions = 1 if name == "fc.weight" else math.ceil(size[0] / stride) * math.ceil(size[1] / stride)
            total += positions * math.prod(shape)
    return total


def _level(name: str, shapes: LayerShapes) -> int:
    """Return the level whose resolution a convolution's output has."""
    if decoder := _DECODER.match(name):
        finest = _COARSEST - 1 - int(decoder[1])
        # Projections, and transposed convolutions by what they read, run at the stride of the coarser maps.
        return finest if decoder[2] == "node" else finest + 1
    if name.startswith(("fc.0.", "up.")):  # of a dense network, at the stride of its decoder
        return _COARSEST - len({match[1] for other in shapes if (match := _DECODER.match(other))})
    level = _LEVEL.match(name)
    number = int(level[1]) if level else 0
    # A bottleneck narrows its input before its second convolution halves the resolution.
    first = _FIRST_BLOCK.fullmatch(name)
    return number - 1 if first and f"{first[1]}.conv3.weight" in shapes else number
