"""Nodes by name: what runs, in which order, on what; and the network cut off at each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dla.errors import UnknownNameError
from dla.models.build import build
from dla.models.dla import DLA
from dla.models.fuse import fuse_conv_bn
from dla.models.nodes import nodes, tap, truncate
from dla.models.registry import row
from dla.models.tree import Node
from support.oracle import randomise, relative, timm
from support.tiny import CHANNELS, tiny

pytestmark = pytest.mark.slow

X_N3HW = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def maps_of(net: nn.Module, x_N3HW: Tensor) -> dict[str, Tensor]:
    """What each module gives, by forward hooks; a copy, since what follows may write into it."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda module, args, result: found.update({name: result.clone()})

    hooks = [module.register_forward_hook(keep(name)) for name, module in net.named_modules() if name]
    with torch.no_grad():
        net.eval()(x_N3HW)
    for hook in hooks:
        hook.remove()
    return found


THEIR_BLOCKS = {
    "basic": timm.models.dla.DlaBasic,
    "bottleneck": timm.models.dla.DlaBottleneck,
    "bottle2neck": timm.models.dla.DlaBottle2neck,
}


@pytest.mark.parametrize(
    ("name", "block"),
    [("dla34", "basic"), ("dla46x_c", "bottleneck"), ("dla60", "bottle2neck"), ("dla102", "bottleneck")],
)
def test_the_map_at_every_node_is_timms(name: str, block: str) -> None:
    """The trees of four networks, narrowed to what a test has time for."""
    shape = {"levels": row(name).depths, "channels": CHANNELS, "shortcut_root": row(name).shortcut, "num_classes": 3}
    ours, theirs = DLA(block=block, **shape).double(), timm.models.dla.DLA(block=THEIR_BLOCKS[block], **shape).double()
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    x_N3HW = X_N3HW.double()
    expected = maps_of(theirs, x_N3HW)
    found = nodes(ours)
    assert len(found) == sum(type(module).__name__ == "DlaRoot" for module in theirs.modules())
    for node in found:
        map_NCHW = truncate(ours.eval(), node.name)(x_N3HW)
        assert relative(map_NCHW.detach(), expected[node.name]) < 1e-9
        assert node.channels == map_NCHW.shape[1]
        assert map_NCHW.shape[2:] == tuple(-(-side // node.stride) for side in x_N3HW.shape[2:])
    with torch.no_grad():
        pre_logits_NC = truncate(ours, "pre_logits")(x_N3HW)
        assert relative(pre_logits_NC, theirs.forward_head(theirs.forward_features(x_N3HW), pre_logits=True)) < 1e-9


def test_names_and_inputs_of_a_deep_level() -> None:
    found = {node.name: node for node in nodes(build("dla60"))}
    level4 = [name for name in found if name.startswith("level4")]
    assert level4 == ["level4.tree1.tree1", "level4.tree1", "level4.tree2.tree1", "level4"]
    assert found["level4"].inputs == (
        "level4.tree2.tree2.tree2", "level4.tree2.tree2.tree1", "level4.downsample", "level4.tree1",
        "level4.tree2.tree1",
    )  # fmt: skip
    assert [(node.name, node.channels, node.stride) for node in (found["level2"], found["level5"])] == [
        ("level2", 128, 4),
        ("level5", 1024, 32),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("block", ["basic", "bottle2neck"])
@pytest.mark.parametrize("output_stride", [32, 8])
def test_what_a_node_is_said_to_take_is_what_it_takes(block: str, output_stride: int) -> None:
    net = tiny(block, shortcut_root=True, output_stride=output_stride).eval()
    randomise(net)
    taken: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, args: tuple[tuple[Tensor, ...]]) -> None:
            taken[name] = torch.cat(args[0], 1)

        return hook

    hooks = [
        module.register_forward_pre_hook(keep(name)) for name, module in net.named_modules() if isinstance(module, Node)
    ]
    with torch.no_grad():
        net(X_N3HW)
        for hook in hooks:
            hook.remove()
        for node, (ran, expected) in zip(nodes(net), taken.items(), strict=True):
            assert torch.equal(torch.cat([truncate(net, name)(X_N3HW) for name in node.inputs], 1), expected)
            assert torch.equal(truncate(net, node.name)(X_N3HW), truncate(net, ran)(X_N3HW))
            assert node.stride <= output_stride


def test_levels_and_synonyms() -> None:
    net = tiny().eval()
    maps = maps_of(net, X_N3HW)
    for level in range(6):
        assert torch.equal(truncate(net, f"level{level}")(X_N3HW), maps[f"level{level}"])
    for synonym in ("level3.tree2", "level3.tree2.tree2", "level3.tree2.tree2.root"):
        assert torch.equal(truncate(net, synonym)(X_N3HW), maps["level3"])


def test_nothing_else_is_computed() -> None:
    net = tiny()
    cut = truncate(net, "level3.tree1")
    assert {name for name, _ in cut.named_parameters()} == {
        name for name, _ in net.named_parameters()
        if name.startswith(("base_layer", "level0", "level1", "level2", "level3.tree1"))
    }  # fmt: skip
    assert len(list(maps_of(cut, X_N3HW))) < len(list(maps_of(net, X_N3HW)))


def test_folded_networks_are_cut_too_and_cut_ones_fold() -> None:
    net = tiny("bottle2neck").double()
    randomise(net)
    x_N3HW = X_N3HW.double()
    maps = maps_of(net, x_N3HW)
    folded = fuse_conv_bn(net)
    for node in nodes(net):
        cut = truncate(folded, node.name)
        assert relative(cut(x_N3HW).detach(), maps[node.name]) < 1e-9
        assert {p.data_ptr() for p in cut.parameters()} <= {p.data_ptr() for p in folded.parameters()}
    assert relative(truncate(folded, "pre_logits")(x_N3HW).detach(), maps["global_pool"].flatten(1)) < 1e-9
    folded = fuse_conv_bn(truncate(net, "level4.tree1"))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert relative(folded(x_N3HW).detach(), maps["level4.tree1"]) < 1e-9


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck", "bottle2neck"])
def test_all_maps_come_from_one_pass(block: str, fold: bool) -> None:
    net = tiny(block).double()
    randomise(net)
    x_N3HW = X_N3HW.double()
    maps = maps_of(net, x_N3HW)
    names = tuple(dict.fromkeys(name for node in nodes(net) for name in (node.name, *node.inputs)))
    *found, logits = tap(fuse_conv_bn(net) if fold else net.eval(), ("level0", *names))(x_N3HW)
    for name, map_NCHW in zip(("level0", *names), found, strict=True):
        assert relative(map_NCHW.detach(), maps[name]) < 1e-9, name
    assert relative(logits.detach(), net(x_N3HW).detach()) < 1e-9
    with pytest.raises(UnknownNameError, match="level9"):
        tap(net, ("level4", "level9"))


def test_the_parameters_are_the_networks_own_and_its_mode_counts() -> None:
    net = tiny(drop_path_rate=0.5, drop_rate=0.5).train()
    net.set_grad_checkpointing()
    cut = truncate(net, "pre_logits")
    assert not torch.equal(cut(X_N3HW), cut(X_N3HW))
    cut(X_N3HW).sum().backward()
    assert net.level5.root.conv.weight.grad is not None
    assert torch.equal(cut.eval()(X_N3HW), cut(X_N3HW))


def test_another_pooling() -> None:
    assert truncate(tiny(global_pool="catavgmax", num_classes=0), "pre_logits")(X_N3HW).shape == (2, 64)


@pytest.mark.parametrize(
    ("at", "nearest"),
    [
        ("level4.tree3", "level4.tree2"),
        ("prelogits", "pre_logits"),
        ("level6", "level5"),
        ("fc", "All: level0, level1, level2, level3, level4, level5, pre_logits, and"),
    ],
)
def test_unknown_places_are_named_with_the_nearest(at: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError, match=f'no node of this network is called "{at}".*{nearest}'):
        truncate(tiny(), at)


@pytest.mark.parametrize("fold", [False, True])
def test_what_was_pruned_is_no_place(fold: bool) -> None:
    net = tiny().eval()
    maps = maps_of(net, X_N3HW)
    net.prune_intermediate_layers([2])
    assert {node.name.split(".")[0] for node in nodes(net)} == {"level2"}
    cut = fuse_conv_bn(net) if fold else net
    assert relative(truncate(cut, "level2")(X_N3HW).detach(), maps["level2"]) < 1e-5
    for gone in ("level3", "level5", "level5.root", "pre_logits"):
        with pytest.raises(UnknownNameError, match=f'"{gone}".* level2'):
            truncate(cut, gone)


@pytest.mark.parametrize("fold", [False, True])
def test_pre_logits_need_pooling(fold: bool) -> None:
    for pool, found in (("fastcatavgmax", True), ("", False)):
        net = tiny(global_pool=pool, num_classes=0).eval()
        cut = fuse_conv_bn(net) if fold else net
        if found:
            assert truncate(cut, "pre_logits")(X_N3HW).shape == (2, net.head_hidden_size)
        else:
            with pytest.raises(
                UnknownNameError, match='"pre_logits".* All: level0, level1, level2, level3, level4, level5,'
            ):
                truncate(cut, "pre_logits")
