"""Fuse batch-norm into the preceding convolution."""

from __future__ import annotations

import copy

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dla.models.decoder import Bilinear, Transposed


class _FuseTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # upsampling depends on sizes
        return isinstance(m, Bilinear | Transposed) or super().is_leaf_module(m, module_qualified_name)


def fuse_conv_bn(model: nn.Module) -> fx.GraphModule:
    """Return a copy of `model` in evaluation mode with each batch-norm fused into the preceding convolution.

    Outputs are equal except for float32 rounding. Other norms are unchanged.
    """
    model = copy.deepcopy(model).eval()
    graph_module = fx.GraphModule(model, _FuseTracer().trace(model))
    modules = dict(graph_module.named_modules())
    for node in list(graph_module.graph.nodes):
        norm = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        before = node.args[0]
        conv = modules.get(str(before.target)) if before.op == "call_module" else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            graph_module.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module
