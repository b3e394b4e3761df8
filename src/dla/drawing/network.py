"""Describe a network's levels, blocks and aggregation nodes on the grid of `dla.drawing.layout`, and draw it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from dla.drawing.layout import Drawing, Level, NetworkPart, Wire, lay_out
from dla.drawing.shapes import writer_of
from dla.errors import UsageError
from dla.models import flops
from dla.models.aggregation import HDA
from dla.models.build import build
from dla.models.decoder import DLAUp, PixelFeatures
from dla.models.dense import Dense
from dla.models.dla import DLA
from dla.models.nodes import nodes
from dla.models.registry import TABLE
from dla.models.tree import Tree
from dla.storage.files import write_file
from dla.weights.keys import shapes_of
from dla.weights.load import skeleton
from dla.weights.spec import open_files

# The name of a node, the names of its inputs, newest first, and a description of its output.
Taking = tuple[str, tuple[str, ...], str]

_OF_TREES = "Each node aggregates its blocks and the smaller trees before them; its output is the next block's input."
_OF_ROWS = "Each row adds a finer map and aggregates it with the upsampled outputs of the row below."
_OF_MAPS = "aggregation node, and its number of inputs"


def describe(model: nn.Module, title: str = "") -> Drawing:
    """Describe a network as a drawing.

    Args:
        model: a `DLA`, a decoder, or any module that contains an `HDA`.
        title: the title; by default the name of its architecture or class.

    Raises:
        UsageError: the model has no aggregation.
    """
    if isinstance(model, DLA):
        return _of_dla(model, title)
    if isinstance(model, PixelFeatures | Dense):
        size = f"{_count(model)} parameters, {_count(model.dla_up)} of them in the decoder"
        return _of_decoder(model.dla_up, f"{title}, {size}" if title else size, output_stride=1)
    if isinstance(model, DLAUp):
        return _of_decoder(model, f"{_count(model)} parameters", output_stride=model.strides[0])
    if stages := {path: part for path, part in model.named_modules() if isinstance(part, HDA)}:
        return _of_stages(stages, title or type(model).__name__, f"{_count(model)} parameters")
    raise UsageError(
        f"a {type(model).__name__} has no aggregation to draw. Allowed: a DLA or its name, a DLAUp, an HDA, "
        "or a network with one"
    )


def _of_dla(model: DLA, title: str) -> Drawing:
    found = [(n.name, n.inputs, f"{n.channels} channels at stride {n.stride}") for n in nodes(model)]
    levels, wires = list[Level](), list[Wire]()
    for place, label, channels, stride in _places(model):
        last = levels[-1].parts[-1].name if levels else None
        module = model.get_submodule(place)
        if isinstance(module, Tree):
            own = [node for node in found if node[0].partition(".")[0] == place]
            parts, taken = _tree(own, last, pooled=f"{place}.downsample")
        else:
            parts, taken = _convolutions(place, module, last)
        levels.append(Level((label, f"{channels} channels", f"stride {stride}"), parts, stride))
        wires += taken
    if model.num_classes:
        wires.append(Wire(levels[-1].parts[-1].name, "fc", "path"))
        head = NetworkPart("fc", "conv", hint="fc: the mean of the map, and a score for each class")
        levels.append(Level(("classifier", f"{model.num_classes} classes"), (head,), levels[-1].stride))
    architecture = model.default_cfg.get("architecture") or type(model).__name__
    about = "" if title in ("", architecture) else f"{architecture}, "
    block = model.get_submodule(found[0][1][0])
    return _of_trees(title or architecture, about + _size(model), levels, wires, "trees of", block)


def _of_trees(
    title: str, size: str, levels: Sequence[Level], wires: Sequence[Wire], row_words: str, block: nn.Module
) -> Drawing:
    rows = tuple(f"{row_words} {2**row} blocks" for row in range(1, max(level.rows for level in levels)))
    return Drawing(title, size, _OF_TREES, tuple(levels), tuple(wires), rows, _legend(block, levels, wires))


def _places(model: DLA) -> Iterator[tuple[str, str, int, int]]:
    """Yield the module's name, label, channels and stride of the stem and of each level."""
    yield "base_layer", "stem", model.channels[0], 1
    for level, info in enumerate(model.feature_info):
        yield info["module"], f"level {level}", info["num_chs"], info["reduction"]


def _size(model: DLA) -> str:
    _, height, width = model.default_cfg.get("input_size") or (3, 224, 224)
    work = flops.macs(shapes_of(model.state_dict()), (height, width), model.feature_info[-1]["reduction"])
    return f"{_count(model)} parameters, {work / 1e9:.2f} GMACs at {height}x{width}"


def _count(model: nn.Module) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"{parameters / 1e6:.1f} M" if parameters > 1e5 else f"{parameters:,}"


def _convolutions(place: str, stack: nn.Module, before: str | None) -> tuple[tuple[NetworkPart, ...], list[Wire]]:
    parts = list[NetworkPart]()
    for name, conv in stack.named_children():
        if isinstance(conv, nn.Conv2d):
            what = f"{'x'.join(map(str, conv.kernel_size))} convolution, {conv.in_channels} to {conv.out_channels}"
            parts.append(NetworkPart(f"{place}.{name}", "conv", len(parts), hint=f"{place}.{name}: {what} channels"))
    names = [*([before] if before else []), *(part.name for part in parts)]
    return tuple(parts), [Wire(a, b, "path") for a, b in pairwise(names)]


def _tree(
    own: Iterable[Taking], before: str | None, pooled: str | None = None
) -> tuple[tuple[NetworkPart, ...], list[Wire]]:
    """Return the blocks and nodes of one level, each node in the row of its tree's depth, and their wires.

    Args:
        own: its nodes, in the order they run.
        before: the part whose output is the level's input, if it is drawn.
        pooled: the name of the pooled input, if a node takes it.
    """
    parts, wires = list[NetworkPart](), list[Wire]()
    rows, covers = dict[str, int](), dict[str, int]()
    last, column = before, -1
    for name, inputs, gives in own:
        trees = [taken for taken in inputs if taken in rows]
        rows[name] = 1 + max([rows[taken] for taken in trees], default=0)
        covers[name] = len(inputs) - len(trees) - (pooled in inputs) + sum(covers[taken] for taken in trees)
        for taken in reversed(inputs):
            if taken == pooled:
                hint = f"{pooled}: the output of {before}, pooled"
                parts.append(NetworkPart(pooled, "pool", 0, rows[name], text="pool", hint=hint))
                wires += [Wire(before, pooled, "path")] if before else []
            elif taken not in trees:
                column += 1
                hint = f"{taken}: block" + (f", takes {last}" if last else "")
                parts.append(NetworkPart(taken, "block", column, hint=hint))
                wires += [Wire(last, taken, "path")] if last else []
                last = taken
        hint = f"{name}: takes {', '.join(inputs)}; gives {gives}"
        parts.append(NetworkPart(name, "node", column, rows[name], covers[name], str(len(inputs)), hint))
        wires += [Wire(taken, name, "pooled" if taken == pooled else "takes") for taken in inputs]
        last = name
    return tuple(parts), wires


def _legend(block: nn.Module, levels: Sequence[Level], wires: Sequence[Wire]) -> tuple[dict[str, str], ...]:
    """Return the legend of the kinds of parts and wires in the drawing."""
    blocks = {"conv": "convolution", "block": f"block ({type(block).__name__})", "node": _OF_MAPS}
    inputs = {"path": "input of a block", "takes": "input of a node", "pooled": "the level's input, pooled"}
    lines = blocks, inputs | {"tree": "a smaller tree, up to its node"}
    drawn = {part.kind for level in levels for part in level.parts} | {wire.kind for wire in wires} | {
        "tree" for level in levels for part in level.parts if 0 < part.covers < level.columns
    }  # fmt: skip
    return tuple({kind: text for kind, text in line.items() if kind in drawn} for line in lines)


def _of_stages(stages: dict[str, HDA], title: str, size: str) -> Drawing:
    """Describe the stages with nodes of a network that may have other layers between them."""
    levels, wires = list[Level](), list[Wire]()
    for path, hda in stages.items():
        own = list(_takings(path, hda))
        parts, taken = _tree(own, levels[-1].parts[-1].name if levels else None)
        levels.append(Level((path or "stage", own[-1][2]), parts))
        wires += taken
    first = next(iter(stages.values()))
    return _of_trees(title, size, levels, wires, "trees of up to", first.get_submodule(first.names[0]))


def _takings(path: str, hda: HDA) -> Iterator[Taking]:
    """Yield the nodes of an HDA, with the recursion of `HDA.forward`."""
    prefix = f"{path}." if path else ""
    blocks, results = iter(hda.names), list[str]()
    for number, ((blocks_run, kept), node) in enumerate(zip(hda.plan, hda.nodes, strict=True)):
        name = f"{prefix}nodes.{number}"
        newest = [f"{prefix}{next(blocks)}" for _ in range(blocks_run)][::-1]
        yield name, (*newest, *results[len(results) - kept :]), f"{node.get_submodule('conv').out_channels} channels"
        results[len(results) - kept :] = [name]


def _of_decoder(model: DLAUp, size: str, output_stride: int) -> Drawing:
    """Describe a decoder: columns are maps, the finest on the left; rows are IDAs, the finest map first, then nodes."""
    channels, strides, top = model.channels, model.strides, len(model.channels) - 1
    columns = [[NetworkPart(f"map {m}", "map", row=top - m, hint=f"map {m}: of the backbone")] for m in range(top + 1)]
    wires = list[Wire]()
    for i, ida in enumerate(model):
        finest = top - 1 - i
        for m in range(finest + 1, top + 1):
            name, before, deeper = f"{ida}.node_{m - finest}", columns[m - 1][-1].name, columns[m][-1].name
            wires += [Wire(before, name, "takes"), Wire(deeper, name, "up")]
            gives = f"gives {channels[finest]} channels at stride {strides[finest]}"
            hint = f"{name}: takes {before} and {deeper}, upsampled; {gives}"
            columns[m].append(NetworkPart(name, "node", row=top - finest, text="2", hint=hint))
    last = columns[-1][-1].name
    wires.append(Wire(last, "output", "path" if output_stride == strides[0] else "up"))
    columns.append([NetworkPart("output", "map", row=top, hint=f"output: the output of {last}")])
    facts = [*zip(channels, strides, strict=True), (channels[0], output_stride)]
    levels = tuple(
        Level((parts[0].name, f"{c} channels", f"stride {stride}"), tuple(parts))
        for parts, (c, stride) in zip(columns, facts, strict=True)
    )
    rows = tuple(f"{ida}: {c} channels" for ida, c in zip(model, channels[-2::-1], strict=True))
    maps = {"map": "feature map of the backbone, or the output", "node": _OF_MAPS}
    inputs = {"takes": "input of a node, unchanged", "up": "projected to the node's channels and upsampled"}
    return Drawing("DLAUp", size, _OF_ROWS, levels, tuple(wires), rows, (maps, inputs))


def draw(model: str | nn.Module, output: str | os.PathLike[str]) -> None:
    """Draw a network: its levels, blocks and aggregation nodes, and the inputs of each.

    Args:
        model: the name of a network, a model folder, a file of weights; or a module: a `DLA`, a `DLAUp`, the result of
            `DLAUp.over` or `graft`, or any other that contains an `HDA`.
        output: the file to write: .svg, or .png at twice the size.

    Raises:
        UsageError: the file has another suffix, or the module has no aggregation.
        UnknownNameError: there is no network or file `model`.
        UnavailableError: the model's files are missing or cannot be downloaded.
        DamagedError: the model's files are damaged.
        OSError: the file cannot be written.
    """
    write = writer_of(output)
    drawing = describe(model) if isinstance(model, nn.Module) else describe(*_open(model))
    write_file(os.path.expanduser(output), write(lay_out(drawing)))


def _open(source: str) -> tuple[nn.Module, str]:
    """Build the network without its weights, and return its title too. Networks in `TABLE` need no download."""
    name = source
    if source not in TABLE:
        files = open_files(source)
        origin = files.source
        released = [r.name for r in TABLE.values() if (origin.kind, origin.where) == ("hub", r.hub_id)]
        if not released:
            title = origin.name or (source if origin.kind == "hub" else Path(origin.where).resolve().name)
            return skeleton(files), "".join(letter if letter.isprintable() else "?" for letter in title)
        name = released[0]
    with torch.device("meta"):
        return build(name), name
