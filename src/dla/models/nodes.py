"""Name the aggregation nodes of a network, and truncate the network at any of them.

A node is named after the largest tree that ends in it: `level4`, `level4.tree2` and `level4.tree2.tree2` end in the
same node, whose name is `level4`; the other two are synonyms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from dla.models.blocks import DropPath
from dla.models.decoder import Bilinear, Transposed
from dla.models.dla import DLA
from dla.models.registry import LOGITS, PRE_LOGITS, check_feature_node
from dla.models.tree import Tree

_NODE = re.compile(r"level[0-5](\.tree[12])*(\.root|\.downsample)?")


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """An aggregation node.

    name: the largest tree that ends in it.
    channels: channels of its map.
    stride: stride of its map, in pixels.
    inputs: its inputs in the order of concatenation: its two blocks, newest first ("level4.tree1.tree1.tree2",
        "level4.tree1.tree1.tree1"); the pooled input of the level ("level4.downsample"); earlier nodes of the level,
        in the order they run. `truncate` takes each of these names.
    """

    name: str
    channels: int
    stride: int
    inputs: tuple[str, ...]


def nodes(model: DLA) -> tuple[NodeInfo, ...]:
    """Return every aggregation node of `model`, in the order they run."""
    infos: list[NodeInfo] = []
    for info in model.feature_info:
        level = info["module"]
        tree = model.get_submodule(level)
        if isinstance(tree, Tree):
            infos += _nodes(tree, level, level, info["reduction"])
    return tuple(infos)


def _nodes(tree: Tree, path: str, name: str, stride: int, kept: tuple[str, ...] = ()) -> Iterator[NodeInfo]:
    """Yield the nodes of a tree, recursing as `Tree.forward`; `name` is the largest tree that ends in its last node."""
    if tree.keep_input:
        kept = (*kept, f"{path}.downsample")
    if isinstance(tree.tree1, Tree) and isinstance(tree.tree2, Tree):
        yield from _nodes(tree.tree1, f"{path}.tree1", f"{path}.tree1", stride)
        yield from _nodes(tree.tree2, f"{path}.tree2", name, stride, (*kept, f"{path}.tree1"))
    else:
        yield NodeInfo(name, tree.root.conv.out_channels, stride, (f"{path}.tree2", f"{path}.tree1", *kept))


def truncate(model: nn.Module, at: str) -> fx.GraphModule:
    """Return the part of a network that computes the map at a feature node: x_N3HW -> (N, C, H', W').

    The result shares the parameters and buffers of `model`.

    Args:
        model: a DLA, or the result of `fuse_conv_bn` for one.
        at: "level0" to "level5"; an aggregation node, a tree (`level4.tree2` means its last node), a block or a
            `downsample` by its module name; or "pre_logits", the input of the classifier, (N, head_hidden_size), of
            a network with pooling; or "logits", (N, K, H, W), of a dense network.

    Raises:
        UnknownNameError: if the network has no such node; pruned levels have none.
    """
    whole = model.graph if isinstance(model, fx.GraphModule) else trace(model)
    known = feature_nodes(model, whole)
    check_feature_node(at, known)
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in _leading_to(known[at]):
        copies[node] = part.node_copy(node, copies.__getitem__)
    result = copies[known[at]]
    part.output(part.call_module("flatten", (result,)) if at == PRE_LOGITS else result)
    return fx.GraphModule(model, part)


def tap(model: nn.Module, names: tuple[str, ...]) -> fx.GraphModule:
    """Return a network that also returns the maps at feature nodes: x_N3HW -> (*maps, output).

    Arguments and errors are as for `truncate`.
    """
    whole = model.graph if isinstance(model, fx.GraphModule) else trace(model)
    known = feature_nodes(model, whole)
    for name in names:
        check_feature_node(name, known)
    copies = dict[fx.Node, fx.Node]()
    tapped = fx.Graph()
    output: fx.Node = tapped.graph_copy(whole, copies)  # type: ignore[assignment]
    tapped.output((*(copies[known[name]] for name in names), output))
    return fx.GraphModule(model, tapped)


def feature_nodes(model: nn.Module, whole: fx.Graph) -> dict[str, fx.Node]:
    """Return the graph node that computes each feature node, by the names that `truncate` takes.

    `whole` is the graph of `model`, from `trace`. The output at "pre_logits" is not flattened yet.
    """
    outputs = {
        name: node
        for node in whole.nodes  # the last operation of a module computes its output
        for name, _ in node.meta.get("nn_module_stack", {}).values()
    }
    pruned = {name for name, module in model.named_children() if isinstance(module, nn.Identity)}
    known = {name: node for name, node in outputs.items() if _NODE.fullmatch(name) and name not in pruned}
    if "global_pool" in outputs:  # without pooling there are no features before the classifier
        known[PRE_LOGITS] = outputs["head_drop"]
    if "up" in outputs:  # a dense network
        known[LOGITS] = outputs["up"]
    return known


def trace(model: nn.Module) -> fx.Graph:
    """Return the graph of all operations of a network in its current train/eval mode."""
    with torch.no_grad():  # keeps activation checkpointing out of the graph
        return _Tracer().trace(model)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # DropPath checks the mode when it runs, so the truncated network can be trained
        # and upsampling depends on sizes
        return isinstance(m, DropPath | Bilinear | Transposed) or super().is_leaf_module(m, module_qualified_name)


def _leading_to(last: fx.Node) -> list[fx.Node]:
    """Return `last` and the operations it depends on, in the order they run."""
    needed = {last}
    for node in reversed(last.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in last.graph.nodes if node in needed]
