"""Every aggregation node of a network by name, and the network cut off at any of them.

A node is named by the largest tree that ends in it: of `level4.tree2.tree2` and `level4.tree2`, which end in the
same node as `level4` itself, the last one is its name; the others are synonyms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from dla.models.blocks import DropPath
from dla.models.dla import DLA
from dla.models.registry import PRE_LOGITS, check_feature_node
from dla.models.tree import Tree

__all__ = ["NodeInfo", "feature_nodes", "nodes", "trace", "truncate"]


_PLACE = re.compile(r"level[0-5](\.tree[12])*(\.root|\.downsample)?")


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One aggregation node.

    name: the largest tree that ends in it.
    channels: of the map that it gives.
    stride: pixels of the image from one position of that map to the next.
    inputs: what it takes, in the order in which it joins them: its two blocks, the newest first
        ("level4.tree1.tree1.tree2", "level4.tree1.tree1.tree1"); the level's input, pooled ("level4.downsample");
        earlier nodes of the level by their names, in the order they ran. `truncate` takes each of these names.
    """

    name: str
    channels: int
    stride: int
    inputs: tuple[str, ...]


def nodes(model: DLA) -> tuple[NodeInfo, ...]:
    """Every aggregation node of `model`, in the order they run."""
    found: list[NodeInfo] = []
    for info in model.feature_info:
        level = info["module"]
        tree = model.get_submodule(level)
        if isinstance(tree, Tree):
            found += _nodes(tree, level, level, info["reduction"])
    return tuple(found)


def _nodes(tree: Tree, path: str, name: str, stride: int, kept: tuple[str, ...] = ()) -> Iterator[NodeInfo]:
    """The nodes of one tree, by the recursion of `Tree.forward`; `name` is the largest tree that ends where it does."""
    if tree.keep_input:
        kept = (*kept, f"{path}.downsample")
    if isinstance(tree.tree1, Tree) and isinstance(tree.tree2, Tree):
        yield from _nodes(tree.tree1, f"{path}.tree1", f"{path}.tree1", stride)
        yield from _nodes(tree.tree2, f"{path}.tree2", name, stride, (*kept, f"{path}.tree1"))
    else:
        yield NodeInfo(name, tree.root.conv.out_channels, stride, (f"{path}.tree2", f"{path}.tree1", *kept))


def truncate(model: nn.Module, at: str) -> fx.GraphModule:
    """The part of a network that leads to one place: x_N3HW -> the map (N, C, H', W') there, nothing else computed.

    The result shares the parameters and buffers of `model`.

    Args:
        model: a DLA, or what `fold_batch_norm` made of one.
        at: "level0" to "level5"; a node, a tree (`level4.tree2`, which is its last node) or a block by its name in
            the network; a `downsample`; or "pre_logits": what the classifier is given, (N, head_hidden_size), of a
            network that pools.

    Raises:
        UnknownNameError: the network has no such place; a level that was pruned is none.
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


def feature_nodes(model: nn.Module, whole: fx.Graph) -> dict[str, fx.Node]:
    """The operation that gives what is at each place of a network, by the names that `truncate` takes.

    `whole` is the graph of `model`, from `trace`. What is at "pre_logits" is yet to be flattened.
    """
    given = {
        name: node
        for node in whole.nodes  # of several operations of a module the last one makes what it gives
        for name, _ in node.meta.get("nn_module_stack", {}).values()
    }
    pruned = {name for name, module in model.named_children() if isinstance(module, nn.Identity)}
    found = {name: node for name, node in given.items() if _PLACE.fullmatch(name) and name not in pruned}
    if "global_pool" in given:  # without pooling nothing is computed there
        found[PRE_LOGITS] = given["head_drop"]
    return found


def trace(model: nn.Module) -> fx.Graph:
    """Every operation of a network in its present mode."""
    with torch.no_grad():  # keeps gradient checkpointing out of the graph
        return _Tracer().trace(model)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # DropPath asks for the mode when it runs, so that the cut network can be trained
        return isinstance(m, DropPath) or super().is_leaf_module(m, module_qualified_name)


def _leading_to(last: fx.Node) -> list[fx.Node]:
    """The operations that `last` depends on, and itself, in the order they run."""
    needed = {last}
    for node in reversed(last.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in last.graph.nodes if node in needed]
