"""Trace a network in PyTorch into its list of operations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dla.engines.graph import Op, OpGraph
from dla.models.blocks import DropPath
from dla.models.decoder import Bilinear, Transposed, check_maps
from dla.models.nodes import feature_nodes, trace
from dla.models.registry import PRE_LOGITS

_NO_OPS = (nn.Identity, nn.Dropout, DropPath)  # in evaluation mode


def trace_ops(model: nn.Module) -> OpGraph:
    """Return the operations of a network in evaluation mode, up to its logits (N, K), or its map if it does not pool.

    Raises:
        NotImplementedError: the network has an operation that is not in `Op`'s list.
    """
    traced = trace(model)
    walk = _Walk(model)
    for node in traced.nodes:
        walk.take(node)
    nodes = {name: walk.numbers[node] for name, node in feature_nodes(model, traced).items()}
    if PRE_LOGITS in nodes:
        nodes[PRE_LOGITS] = walk.add("flatten", nodes[PRE_LOGITS])
    return OpGraph(tuple(walk.ops), walk.output, dict(sorted(nodes.items())))


class _Walk:
    """Convert the nodes of a traced network, in their order, to operations."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.ops: list[Op] = []
        self.output = 0
        self.numbers: dict[fx.Node, int] = {}
        self.channels: dict[int, int] = {}  # of the results of convolutions, which `part` may need
        self.norms: set[fx.Node] = set()  # batch-norms that are folded into the convolution before them

    def add(self, op_type: str, *inputs: int, **attributes: Any) -> int:
        self.ops.append(Op(op_type, inputs, attributes))
        return len(self.ops)

    def take(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.numbers[node] = 0
        elif node.op == "output":
            self.output = self._inputs(node)[0]
        elif node.op == "call_module" and isinstance(self.modules[str(node.target)], Bilinear | Transposed):
            self.numbers[node] = self._upsample(node, self.modules[str(node.target)])
        elif node.op == "call_module":
            self.numbers[node] = self._module(node, self.modules[str(node.target)])
        elif node.target in _OPERATIONS:
            _OPERATIONS[node.target](self, node)
        else:
            raise _unknown(node)

    def _inputs(self, node: fx.Node) -> list[int]:
        return [self.numbers[x] for x in node.all_input_nodes]

    def _module(self, node: fx.Node, module: nn.Module) -> int:
        (x,) = self._inputs(node)
        if isinstance(module, _NO_OPS) or node in self.norms:
            return x
        if isinstance(module, nn.Conv2d):
            return self._conv(node, module, x)
        if isinstance(module, nn.ReLU):
            result = self.add("relu", x)
            self.channels[result] = self.channels.get(x, 0)
            return result
        if isinstance(module, nn.Flatten):
            return self.add("flatten", x)
        raise _unknown(node)

    def _conv(self, node: fx.Node, conv: nn.Conv2d, x: int) -> int:
        after = next(iter(node.users))
        norm = self.modules.get(str(after.target)) if after.op == "call_module" and len(node.users) == 1 else None
        folds: dict[str, Any] = {"norm": None, "eps": 0.0}
        if isinstance(norm, nn.BatchNorm2d):
            self.norms.add(after)
            folds = {"norm": after.target, "eps": norm.eps}
        result = self.add("conv", x, layer=node.target, **folds, stride=conv.stride[0], padding=conv.padding[0],
                        dilation=conv.dilation[0], groups=conv.groups)  # fmt: skip
        self.channels[result] = conv.out_channels
        return result

    def _upsample(self, node: fx.Node, module: Any) -> int:
        """Add an upsampling of the first argument to the size `like.shape[2:]`."""
        x, size = tuple[Any, ...](node.args)
        shape: Any = size.args[0] if isinstance(size, fx.Node) and size.target is operator.getitem else None
        like = shape.args[0] if isinstance(shape, fx.Node) else None
        if not isinstance(x, fx.Node) or not isinstance(like, fx.Node):
            raise _unknown(node)
        if isinstance(module, Transposed):
            inputs = self.numbers[x], self.numbers[like]
            return self.add("transposed", *inputs, layer=node.target, factor=module.factor)
        if module.coarse % module.fine:
            raise _unknown(node)
        if module.coarse == module.fine:
            return self.numbers[x]
        return self.add("upsample", self.numbers[x], self.numbers[like], factor=module.coarse // module.fine)

    def sum(self, node: fx.Node) -> None:
        args: Any = node.args
        self.numbers[node] = self.add("add", *(self.numbers[x] for x in args))

    def concat(self, node: fx.Node) -> None:
        args: Any = node.args[0]
        self.numbers[node] = self.add("concat", *(self.numbers[x] for x in args))

    def scale(self, node: fx.Node) -> None:
        factor, _ = node.args
        self.numbers[node] = self.add("scale", *self._inputs(node), factor=factor)

    def reduce(self, node: fx.Node) -> None:
        op_type = {"mean": "global_avg_pool", "amax": "global_max_pool"}[str(node.target)]
        if node.args[1] != (2, 3) or node.kwargs != {"keepdim": True}:
            raise _unknown(node)
        self.numbers[node] = self.add(op_type, *self._inputs(node))

    def pad(self, node: fx.Node) -> None:
        """Skip the padding with -inf below and right of a map: `max_pool` reads it."""
        if node.kwargs.get("value") != float("-inf") or any(user.target is not F.max_pool2d for user in node.users):
            raise _unknown(node)
        (self.numbers[node],) = self._inputs(node)

    def max_pool(self, node: fx.Node) -> None:
        (x, size), settings = node.args, dict[str, Any](node.kwargs)
        pad: Any = x.args if isinstance(x, fx.Node) and x.target is F.pad else None
        # "ceil_mode" adds one row and column, which matter where the size is odd
        pad_end = int(settings["ceil_mode"]) if pad is None else pad[1][1]
        if size != 2 or settings["padding"] or not pad_end:
            raise _unknown(node)
        self.numbers[node] = self.add("max_pool", *self._inputs(node), stride=settings["stride"],
                                      dilation=settings["dilation"], pad_end=pad_end)  # fmt: skip

    def avg_pool(self, node: fx.Node) -> None:
        if node.args[1] != 3 or node.kwargs != {"padding": 1}:
            raise _unknown(node)
        self.numbers[node] = self.add("avg_pool", *self._inputs(node), stride=node.args[2])

    def avg_pool_dilated(self, node: fx.Node) -> None:
        x, weight = node.all_input_nodes
        if weight.target != "new_full" or weight.args[2] != 1 / 9:
            raise _unknown(node)
        self.numbers[node] = self.add("avg_pool_dilated", self.numbers[x], dilation=node.kwargs["dilation"],
                                      channels=node.kwargs["groups"])  # fmt: skip

    def chunk(self, node: fx.Node) -> None:
        (self.numbers[node],) = self._inputs(node)

    def part(self, node: fx.Node) -> None:
        """Add one of the equal parts that a map's channels are split into; skip a size, which `_upsample` reads."""
        whole, index = tuple[Any, ...](node.args)
        if isinstance(index, slice):
            return
        _, count, dim = whole.args
        (x,) = self._inputs(node)
        width = self.channels[x] // count
        if dim != 1 or width * count != self.channels[x] or not width:
            raise _unknown(node)
        start = index % count * width
        self.numbers[node] = self.add("slice", x, start=start, stop=start + width)

    def skip(self, node: fx.Node) -> None:
        """Skip what needs no operation: the constant weight of a dilated average pooling, sizes, checks."""


_OPERATIONS: dict[Any, Callable[[_Walk, fx.Node], None]] = {
    operator.add: _Walk.sum,
    operator.mul: _Walk.scale,
    operator.getitem: _Walk.part,
    torch.cat: _Walk.concat,
    F.pad: _Walk.pad,
    F.max_pool2d: _Walk.max_pool,
    F.avg_pool2d: _Walk.avg_pool,
    F.conv2d: _Walk.avg_pool_dilated,
    "chunk": _Walk.chunk,
    "mean": _Walk.reduce,
    "amax": _Walk.reduce,
    "new_full": _Walk.skip,
    getattr: _Walk.skip,
    check_maps: _Walk.skip,
}


def _unknown(node: fx.Node) -> NotImplementedError:
    return NotImplementedError(f"unsupported operation {node.format_node()}")
