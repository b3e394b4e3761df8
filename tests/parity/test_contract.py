"""timm's contract: every item of its API for these networks, as an expression that is evaluated on both sides.

A row of `SAME` must give the same on ours and on timm 1.0.31: values, names, shapes, tensors (the weights are the same
on both sides). A row of `REFUSED` must be an error on both. A row of `DIFFERENT` is a difference that is meant, with
its reason and with what each side gives. `pytest -s` shows how many rows there are.
"""

from __future__ import annotations

import inspect
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

import dla
from support.oracle import timm
from support.photos import CHELSEA

pytestmark = pytest.mark.slow

NAME = "dla46x_c"

FUNCTIONS = [
    "create_model", "list_models", "list_pretrained", "is_model", "list_modules", "model_entrypoint",
    "is_model_pretrained", "get_pretrained_cfg", "get_pretrained_cfg_value", "resolve_data_config",
    "resolve_model_data_config", "create_transform",
]  # fmt: skip
METHODS = [
    "forward", "forward_features", "forward_head", "get_classifier", "reset_classifier", "set_grad_checkpointing",
    "group_matcher", "forward_intermediates", "prune_intermediate_layers",
]  # fmt: skip

# Both sides


def api(library: Any) -> dict[str, Any]:
    homes = (library, getattr(library, "data", library), library.models.dla if library is timm else library)
    names = [*FUNCTIONS, "DLA", "PretrainedCfg"]
    found = {name: next((getattr(home, name) for home in homes if hasattr(home, name)), None) for name in names}
    found["PretrainedCfg"] = library.models.PretrainedCfg if library is timm else library.PretrainedCfg
    return {name: value for name, value in found.items() if value is not None}


def fill(model: nn.Module) -> nn.Module:
    """Weights and statistics that depend on the tensors' names alone; evaluation mode."""
    for name, tensor in model.state_dict().items():
        random = torch.Generator().manual_seed(zlib.crc32(name.rpartition("level")[2].encode()))
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2, generator=random)
        elif tensor.is_floating_point():
            tensor.normal_(0, 1 / tensor[0].numel() ** 0.5, generator=random)
    return model.eval()


def did(model: Any, method: str, *args: Any, **options: Any) -> Any:
    """The model after a call."""
    getattr(model, method)(*args, **options)
    return model


def params(function: Any) -> list[tuple[str, Any]]:
    """Names and defaults of the parameters."""
    kinds = (inspect.Parameter.VAR_KEYWORD,)
    return [(p.name, p.default) for p in inspect.signature(function).parameters.values() if p.kind not in kinds]


def x(channels: int = 3, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height))


def shapes(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]


def about(model: nn.Module) -> list[Any]:
    """What the attributes say."""
    names = ("num_classes", "num_features", "head_hidden_size", "in_chans", "channels", "cardinality", "base_width")
    return [
        *(getattr(model, name) for name in names),
        [{key: info[key] for key in ("num_chs", "reduction", "module")} for info in model.feature_info],
        [type(getattr(model, name)).__name__ for name in ("fc", "flatten", "head_drop")],
        (model.global_pool.pool_type, model.global_pool.feat_mult(), model.head_drop.p),
        getattr(model.fc, "weight", torch.empty(0)).shape,
    ]


def record(cfg: Any) -> dict[str, Any]:
    """A pretrained_cfg without what timm's leaves out (a row of `DIFFERENT`): whose weights they are."""
    cfg = cfg if isinstance(cfg, Mapping) else cfg.to_dict()
    return {key: value for key, value in cfg.items() if key not in ("origin_url", "paper_name", "paper_ids")}


def preparation(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a pretrained_cfg says of the input and of the classes; a folder's also says where it lies, in timm."""
    keys = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode", "first_conv", "classifier")
    return {key: cfg.get(key) for key in (*keys, "architecture", "num_classes", "label_names", "label_descriptions")}


def groups(model: nn.Module, coarse: bool, what: str = "parameters") -> Any:
    return getattr(timm.models, f"group_{what}")(model, model.group_matcher(coarse=coarse))


def step(model: nn.Module) -> list[Any]:
    """A training step's outputs and gradients."""
    given = model.train()(x())
    outputs = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    return [[output.detach() for output in outputs], *(p.grad for p in model.parameters())]


def both_ways(wrapper: nn.Module, theirs: nn.Module) -> bool:
    theirs.load_state_dict(wrapper.state_dict(), strict=True)
    wrapper.load_state_dict(theirs.state_dict(), strict=True)
    return list(wrapper.state_dict()) == list(theirs.state_dict())


SHARED = {
    "did": did, "params": params, "x": x, "shapes": shapes, "about": about, "record": record, "groups": groups,
    "preparation": preparation, "step": step, "both_ways": both_ways, "NAME": NAME, "nn": nn, "torch": torch,
    "timm": timm, "photo": Image.open(CHELSEA).convert("RGB"), "SimpleNamespace": SimpleNamespace,
    "GETTER": {"feature_cls": "getter", "out_indices": (1, 2)},
}  # fmt: skip


class Side:
    """One library's names, and its networks with the same weights as the other's."""

    def __init__(self, library: Any, files: Mapping[str, Any]) -> None:
        self.names = {**SHARED, **files, **api(library), "net": self.net, "features": self.features}

    def net(self, **options: Any) -> nn.Module:
        return fill(self.names["create_model"](options.pop("name", NAME), **options))

    def features(self, feature_cls: Any = "list", **options: Any) -> nn.Module:
        return self.net(features_only=True, feature_cls=feature_cls, **options)

    def value(self, expression: str) -> Any:
        torch.manual_seed(0)
        try:
            with torch.set_grad_enabled("step(" in expression):
                return eval(expression, dict(self.names))
        except (NameError, AttributeError, SyntaxError):
            raise  # what is not there cannot be the same
        except Exception as error:
            return error


def same(ours: Any, theirs: Any) -> bool:
    """Equal values; tensors to rounding, pixels to one level; sequences of any kind; errors of the kind timm raises."""
    if isinstance(theirs, Exception):
        if isinstance(theirs, AssertionError | LookupError):  # about users' values; ours says it with a ValueError
            return isinstance(ours, ValueError | TypeError)
        unloaded = isinstance(theirs, OSError | RuntimeError) and isinstance(ours, dla.UnavailableError)
        return unloaded or isinstance(ours, type(theirs))
    if isinstance(theirs, Tensor):
        alike = isinstance(ours, Tensor) and ours.shape == theirs.shape and ours.dtype == theirs.dtype
        if not alike or theirs.dtype != torch.uint8:
            return alike and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        return int((ours.int() - theirs.int()).abs().max()) <= 1
    if isinstance(theirs, Mapping):
        return isinstance(ours, Mapping) and list(map(str, sorted(ours))) == list(map(str, sorted(theirs))) and all(
            same(ours[key], theirs[key]) for key in theirs
        )  # fmt: skip
    if isinstance(theirs, list | tuple):
        alike = isinstance(ours, list | tuple) and len(ours) == len(theirs)
        return alike and all(map(same, ours, theirs))
    return type(ours) is type(theirs) and bool(ours == theirs)


# The rows: what has to be the same

SAME: dict[str, list[str]] = {
    "the functions' arguments": [
        *(f"params({name})" for name in FUNCTIONS if name != "create_transform"),
        *(f"params(DLA.{name})" for name in METHODS),
        "[(n, d) for n, d in params(DLA) if n not in ('block', 'drop_path_rate', 'norm_layer', 'act_layer')]",
        "dict(params(create_transform)).keys() >= {'input_size', 'is_training', 'scale', 'ratio', 'hflip', 'mean'}",
        *(
            f"dict(params(create_transform))[{name!r}]"
            for name in (
                "input_size", "is_training", "train_crop_mode", "scale", "ratio", "hflip", "interpolation", "mean",
                "std", "crop_pct", "crop_mode", "normalize",
            )
        ),
    ],
    "create_model": [
        "about(create_model(NAME))",
        "about(create_model('dla46x_c.in1k'))",
        "about(create_model('dla34', False, 'in1k', num_classes=3))",
        "about(create_model(model_name=NAME, pretrained=False, num_classes=None, in_chans=None, drop_rate=None))",
        "about(create_model(NAME, drop_block_rate=None, bn_momentum=None))",
        "about(create_model(NAME, scriptable=True, exportable=True, no_jit=True))",
        "about(create_model(NAME, checkpoint_path='', pretrained_cfg='', cache_dir=None))",
        "create_model(NAME).training",
        "about(create_model('dla60', num_classes=7, in_chans=1, global_pool='catavgmax', drop_rate=0.2))",
        "[p.dtype for p in create_model(NAME, dtype=torch.float64).parameters()][:3]",
        "[p.device.type for p in create_model(NAME, device='meta').parameters()][:3]",
    ],
    "pretrained_cfg": [
        "record(create_model(NAME).pretrained_cfg)",
        "(lambda m: m.default_cfg is m.pretrained_cfg)(create_model(NAME))",
        "record(create_model(NAME, num_classes=5, in_chans=1).pretrained_cfg)",
        "record(create_model(NAME, pretrained_cfg='in1k').pretrained_cfg)",
        "record(create_model(NAME, pretrained_cfg=dict(num_classes=7, mean=(0.1, 0.2, 0.3))).pretrained_cfg)",
        "about(create_model(NAME, pretrained_cfg=dict(num_classes=7, input_size=(1, 32, 32))))",
        "about(create_model(NAME, pretrained_cfg=PretrainedCfg(num_classes=7)))",
        "about(create_model(NAME, pretrained_cfg=timm.models.PretrainedCfg(num_classes=7)))",
        "record(create_model(NAME, pretrained_cfg=timm.models.get_pretrained_cfg(NAME)).pretrained_cfg)",
        "record(create_model(NAME, pretrained_cfg_overlay=dict(mean=(0.1, 0.2, 0.3), crop_pct=1.0)).pretrained_cfg)",
        "about(create_model(NAME, pretrained_cfg_overlay=dict(num_classes=7)))",
        "about(create_model(NAME, pretrained_cfg_overlay=dict(num_classes=7), num_classes=3))",
        "about(create_model(NAME, pretrained_cfg_overlay=dict(input_size=(4, 32, 32))))",
        "record(create_model(NAME, pretrained_cfg=dict(tag='a'), pretrained_cfg_overlay=dict(tag='b')).pretrained_cfg)",
        "record(PretrainedCfg(num_classes=3))",
        "PretrainedCfg(file='a', url='b').to_dict(remove_source=True, remove_null=False)",
        "bool(PretrainedCfg().has_weights), bool(PretrainedCfg(hf_hub_id='a/b').has_weights)",
    ],
    "weights": [
        "create_model(NAME, pretrained=True, cache_dir=CACHE).eval()(x())",
        "create_model(NAME, True, cache_dir=CACHE, num_classes=5).eval().forward_features(x())",
        "create_model(NAME, True, cache_dir=CACHE, num_classes=0).eval()(x())",
        "create_model(NAME, True, cache_dir=CACHE, in_chans=1).eval()(x(1))",
        "create_model(NAME, True, cache_dir=CACHE, in_chans=5, global_pool='max').eval()(x(5))",
        "record(create_model(NAME, True, cache_dir=CACHE, num_classes=5, in_chans=1).pretrained_cfg)",
        "record(create_model(NAME, True, 'in1k', dict(mean=(0.1, 0.2, 0.3)), cache_dir=CACHE).pretrained_cfg)",
        "create_model(NAME, True, None, dict(hf_hub_id='me/mine', num_classes=5), cache_dir=CACHE).eval()(x())",
        "create_model('hf-hub:me/mine', pretrained=True, cache_dir=CACHE).eval()(x())",
        "create_model('HF_Hub:me/mine', pretrained=True, cache_dir=CACHE).eval()(x())",
        "about(create_model('hf-hub:me/mine', cache_dir=CACHE))",
        "preparation(create_model('hf-hub:me/mine', pretrained=True, cache_dir=CACHE).pretrained_cfg)",
        "create_model('local-dir:' + FOLDER, pretrained=True).eval()(x())",
        "create_model('Local-Dir:' + FOLDER, pretrained=True, in_chans=1, num_classes=0).eval()(x(1))",
        "about(create_model('local-dir:' + FOLDER))",
        "about(create_model('local-dir:' + FOLDER, num_classes=2, global_pool='max'))",
        "preparation(create_model('local-dir:' + FOLDER, pretrained=True, num_classes=9).pretrained_cfg)",
        "preparation(create_model('local-dir:' + FOLDER).pretrained_cfg)",
        "preparation(create_model('local-dir:' + FOLDER, True, None, dict(std=(1, 1, 1))).pretrained_cfg)",
        "about(create_model('local-dir:' + FOLDER, pretrained=True, pretrained_cfg=None))",
        "create_model(NAME, True, pretrained_cfg_overlay=dict(file=FILE5, num_classes=5)).eval()(x())",
        "create_model(NAME, True, pretrained_cfg_overlay=dict(file=SAFE5, num_classes=5)).eval()(x())",
        "create_model(NAME, True, dict(file=FILE5, num_classes=5, classifier='fc')).eval()(x())",
        "create_model(NAME, True, PretrainedCfg(file=FILE5, num_classes=5)).eval()(x())",
        "record(create_model(NAME, True, pretrained_cfg_overlay=dict(file=FILE5, num_classes=5)).pretrained_cfg)",
        "create_model(NAME, True, pretrained_cfg_overlay=dict(file=FILE5, num_classes=5), num_classes=0).eval()(x())",
        "create_model(NAME, True, pretrained_cfg_overlay=dict(file=FILE5, num_classes=5), in_chans=1).eval()(x(1))",
        "create_model(NAME, True, pretrained_cfg_overlay=dict(state_dict=STATE5, num_classes=5)).eval()(x())",
        "create_model(NAME, True, None, dict(state_dict=STATE5, num_classes=5), num_classes=0).eval()(x())",
        "create_model(NAME, num_classes=5, checkpoint_path=FILE5).eval()(x())",
        "create_model(NAME, num_classes=5, checkpoint_path=SAFE5).eval()(x())",
        "create_model(NAME, pretrained=True, num_classes=5, checkpoint_path=FILE5, cache_dir=CACHE).eval()(x())",
    ],
    "listing": [
        *(
            f"[n for n in list_models({arguments}) if n.startswith('dla') and 'half' not in n]"
            for arguments in (
                "module='dla'", "'dla*'", "'dla60*', 'dla'", "['dla34*', 'dla1*'], module=['dla', 'resnet']",
                "'dla*', pretrained=True", "'dla*', pretrained=True, include_tags=False", "'dla*', include_tags=True",
                "'dla60', include_tags=True", "'dla60.*', include_tags=True", "'dla*.in1k', pretrained=True",
                "'dla*', exclude_filters='*x*'", "'dla*', exclude_filters=['*_c', 'dla34'], pretrained=True",
                "'dla*', name_matches_cfg=True", "'DLA*'", "'nothing*'", "module='vgg'", "('dla34', 'dla60')",
            )
        ),
        *(
            f"list_pretrained({arguments})"
            for arguments in ("'dla*'", "'dla60*'", "['dla34', 'dla102']", "'dla*', '*x*'", "'dla*', ['*2*', 'dla3*']")
        ),
        "'dla' in list_modules()",
        *(f"is_model({name!r})" for name in ("dla34", "dla34.in1k", "dla34.other", "dla35", "", "hf-hub:timm/dla34")),
        *(f"is_model_pretrained({name!r})" for name in ("dla34", "dla34.in1k", "dla34.other", "dla35", "")),
        "about(model_entrypoint('dla34')())",
        "about(model_entrypoint('dla34.in1k')(num_classes=3))",
        "about(model_entrypoint('dla34', 'dla')(pretrained=False))",
        *(f"record(get_pretrained_cfg({name!r}))" for name in list(timm.list_models(module="dla"))),
        "record(get_pretrained_cfg('dla34.in1k'))",
        "get_pretrained_cfg('dla35')",
        "get_pretrained_cfg('dla34').mean, get_pretrained_cfg('dla34').label_names",
        *(f"get_pretrained_cfg_value('dla34', {key!r})" for key in ("mean", "input_size", "url", "tag", "nothing")),
    ],
    "the network": [
        *(f"hasattr(net(), {name!r})" for name in METHODS),
        *(
            f"about(net(global_pool={pool!r}, num_classes={classes}))"
            for pool in ("avg", "catavgmax", "fastcatavgmax", "")
            for classes in (0, 4)
        ),
        *(f"shapes(create_model({name!r}, num_classes=3, device='meta'))" for name in ("dla34", "dla60_res2next")),
        "[n for n, _ in net().named_children()]",
        "DLA((1, 1, 1, 2, 2, 1), (8, 8, 16, 16, 16, 32), 32, 7, 3, 'max', 1, 64).fc.weight.shape",
        "about(DLA([1, 1, 1, 2, 2, 1], [8, 8, 16, 16, 16, 32], base_width=32, shortcut_root=True, drop_rate=0.1))",
        "hasattr(net(), 'no_weight_decay')",
    ],
    "its methods": [
        "net()(x())",
        "net(in_chans=1, num_classes=3, global_pool='avgmax')(x(1, 32, 96))",
        *(f"net(global_pool='fast{pool}')(x())" for pool in ("", "avg", "max", "avgmax", "catavgmax")),
        "net().forward_features(x())",
        "net().forward_head(net().forward_features(x()))",
        "net().forward_head(net().forward_features(x()), pre_logits=True)",
        "net(global_pool='').forward_head(net().forward_features(x()), True)",
        "(lambda m: m.get_classifier() is m.fc)(net())",
        "type(net(num_classes=0).get_classifier()).__name__",
        *(
            f"about(did(net(global_pool='catavgmax'), 'reset_classifier', {arguments}))"
            for arguments in ("3", "0", "3, 'max'", "0, ''", "num_classes=2, global_pool='avg'")
        ),
        "did(net(), 'reset_classifier', 0)(x())",
        "did(net(), 'reset_classifier', 3).fc.training, did(net().train(), 'reset_classifier', 3).fc.training",
        "did(net(dtype=torch.float64), 'reset_classifier', 3).fc.weight.dtype",
        "did(net(), 'set_grad_checkpointing', False)(x())",
        "step(net(num_classes=3))",
    ],
    "forward_intermediates": [
        *(
            f"net().forward_intermediates(x(){arguments})"
            for arguments in (
                "", ", 2", ", [1, 3]", ", (5,)", ", [-1, 0]", ", indices=None, norm=True", ", [3, 1], stop_early=True",
                ", [1], intermediates_only=True", ", 1, stop_early=True, intermediates_only=True", ", [2, 2]",
                ", [0, 4], False, True, 'NCHW', True",
            )
        ),
    ],
    "prune_intermediate_layers": [
        *(
            f"net().prune_intermediate_layers({arguments})"
            for arguments in ("", "2", "[1, 3]", "[-3]", "None", "[4, 2], True, False")
        ),
        *(
            f"{what}(did(net(global_pool='catavgmax'), 'prune_intermediate_layers', {arguments}))"
            for what in ("about", "shapes")
            for arguments in ("", "[2]", "[2], prune_head=False", "[5], prune_head=False", "[-2, 0]")
        ),
        "did(net(), 'prune_intermediate_layers', [2])(x())",
        "did(net(), 'prune_intermediate_layers', [3, 1]).forward_intermediates(x(), [1, 3])",
        "did(net(), 'prune_intermediate_layers', [3]).forward_intermediates(x())",
        "did(did(net(), 'prune_intermediate_layers', [4]), 'reset_classifier', 3, 'avg').eval().fc.weight.shape",
    ],
    "group_matcher": [
        *(
            f"groups(create_model({name!r}, device='meta'), {coarse}, {what!r})"
            for name in ("dla34", "dla46x_c", "dla102", "dla60_res2net")
            for coarse in (False, True)
            for what in ("parameters", "modules")
        ),
        "list(net().group_matcher()), list(net().group_matcher(True))",
    ],
    "features_only": [
        *(
            f"features({cls!r}{indices})(x())"
            for cls in ("list", "dict", "hook", "fx", "getter")
            for indices in ("", *(f", out_indices={given}" for given in ("(0, 2, 4)", "(4, 2)", "(-2, -1)", "2")))
        ),
        *(f"shapes(features({cls!r}, out_indices=(1, 3)))" for cls in ("list", "dict", "hook", "fx", "getter")),
        *(
            f"both_ways(features({cls!r}, out_indices={indices}), timm.create_model(NAME, features_only=True, "
            f"feature_cls={cls!r}, out_indices={indices}))"
            for cls in ("list", "dict", "hook", "fx", "getter")
            for indices in ((1, 2, 3, 4, 5), (2, 1))
        ),
        *(
            f"features(out_indices=(2, 5)).feature_info.{expression}"
            for expression in (
                "channels()", "channels(0)", "channels([1, 2])", "reduction()", "reduction(3)", "module_name()",
                "module_name((4, 5))", "get('num_chs')", "get('index')", "get('reduction', 2)", "get_dicts()",
                "get_dicts(['num_chs'])", "get_dicts(idx=3)", "get_dicts(['module'], [0, 1])", "out_indices",
            )
        ),
        "features().feature_info[2], len(features().feature_info)",
        *(f"list(features({cls!r}, out_indices=2).feature_info.out_indices)" for cls in ("list", "getter")),
        "list(features('getter', out_indices=(-1, 2)).out_indices)",
        "record(features().pretrained_cfg)",
        "(lambda m: m.default_cfg is m.pretrained_cfg)(features())",
        "features(in_chans=1).in_chans, features('dict', in_chans=1)(x(1))",
        "str(features().output_fmt.value if hasattr(features().output_fmt, 'value') else features().output_fmt)",
        "list(features().keys()), list(features('dict', out_indices=(1,)).keys())",
        "features('LIST')(x())",
        "features(num_classes=3, global_pool='max', drop_rate=0.1)(x())",
        "create_model(NAME, features_only=False).num_classes",
        *(
            f"features(timm.models._features.{cls}, out_indices=(1, 4))(x())"
            for cls in ("FeatureListNet", "FeatureDictNet", "FeatureHookNet", "FeatureGetterNet")
        ),
        "features(timm.models._features_fx.FeatureGraphNet, out_indices=(1, 4))(x())",
        "features(lambda model, out_indices: nn.Sequential(model.base_layer, model.level0))(x())",
        "record(features(timm.models.FeatureDictNet).pretrained_cfg)",
        "step(features(out_indices=(3, 5)))",
        "step(did(features('dict'), 'set_grad_checkpointing'))",
        "create_model(NAME, True, cache_dir=CACHE, features_only=True).eval()(x())",
        "create_model(NAME, True, cache_dir=CACHE, features_only=True, feature_cls='fx', out_indices=[2]).eval()(x())",
        "create_model('local-dir:' + FOLDER, True, features_only=True, feature_cls='dict').eval()(x())",
        "create_model(NAME, features_only=True, out_indices=(1, 2), checkpoint_path=MAPS12).eval()(x())",
        "create_model(NAME, features_only=True, **GETTER, checkpoint_path=GETTER12).eval()(x())",
    ],
    "data": [
        "resolve_data_config({}, model=net())",
        "resolve_data_config(model=net(in_chans=1, num_classes=3))",
        "resolve_data_config({}, model=features())",
        "resolve_model_data_config(net())",
        "list(resolve_model_data_config(net()))",
        "resolve_model_data_config(net(), dict(img_size=96, mean=[0.5]), use_test_size=True)",
        "resolve_model_data_config(net(), None, dict(crop_pct=0.9, input_size=(3, 64, 64)))",
        *(
            f"resolve_data_config(dict({arguments}), model=net())"
            for arguments in (
                "in_chans=1", "chans=4", "in_chans=1, chans=4, img_size=32", "input_size=(1, 32, 48)", "chans=None",
                "input_size=[3, 32, 48], img_size=64", "img_size=64", "img_size=64, in_chans=1",
                "interpolation='lanczos'",
                "mean=(0.5,)", "mean=[0.1, 0.2, 0.3]", "mean=(0.5,), input_size=(1, 32, 32)", "std=(0.5,), in_chans=5",
                "std=(1, 2, 3)", "crop_pct=1.0", "crop_pct=0", "crop_mode='border'",
                "crop_mode=''", "interpolation=''", "other=3", "mean=None, std=None, input_size=None, img_size=None",
            )
        ),
        *(
            f"resolve_data_config({arguments})"
            for arguments in (
                "dict(img_size=64)", "dict(in_chans=1)", "None, dict(input_size=(1, 28, 28), mean=(0.1,), std=(0.2,))",
                "{}, dict(mean=None, interpolation='', crop_pct=None)",
                "pretrained_cfg=dict(input_size=(3, 8, 8), test_input_size=(3, 9, 9), test_crop_pct=1.0)",
                "{}, dict(input_size=(3, 8, 8), test_input_size=(3, 9, 9), test_crop_pct=1.0), None, True, False",
                "{}, dict(crop_pct=0.8), net()", "model=SimpleNamespace(pretrained_cfg=dict(crop_pct=0.7))",
                "model=SimpleNamespace()", "pretrained_cfg=get_pretrained_cfg('dla34').to_dict(), verbose=True",
            )
        ),
        "timm.data.resolve_data_config({}, model=net())",
        "timm.data.resolve_model_data_config(net())",
        "timm.data.resolve_model_data_config(features('getter'), dict(img_size=96))",
    ],
    "transforms": [
        *(
            f"create_transform({arguments}, normalize=False)(photo)"
            for arguments in (
                "224", "64", "(3, 64, 64)", "(48, 64)", "[3, 48, 64], False", "64, crop_pct=1.0", "64, crop_pct=None",
                "64, crop_mode='squash'", "(48, 64), crop_mode='border', mean=(0.2, 0.4, 0.6)",
                "64, interpolation='bicubic'", "64, interpolation='nearest'", "64, scale=(0.1, 0.2), hflip=1.0",
                "64, color_jitter=None, auto_augment=None, re_prob=0., vflip=0.", "64, use_prefetcher=False",
            )
        ),
        "create_transform(**resolve_data_config({}, model=net()), normalize=False)(photo)",
        "create_transform(64, mean=(0.5,) * 3, std=(0.5,) * 3)(photo).mul(127.5).add(127.5).round().to(torch.uint8)",
        "create_transform(64)(photo).dtype, create_transform(64, mean=(0.5,) * 3, std=(1.0,) * 3)(photo).shape",
        "create_transform((3, 32, 48), True, color_jitter=None)(photo).shape",
        "create_transform(32, is_training=True, color_jitter=0, interpolation='random', normalize=False)(photo).dtype",
    ],
}  # fmt: skip

# What both refuse

REFUSED: list[str] = [
    "create_model(NAME, drop_block_rate=0.1)",
    "create_model(NAME, 'yes', None, None, None, None, None, None, None, 3)",
    "create_model('dla35')",
    "create_model('dla34.in21k')",
    "create_model('dla34', pretrained_cfg='in21k')",
    "create_model('owner/dla34')",
    "create_model('C:\\\\nets\\\\dla34')",
    "create_model('s3:dla34')",
    "create_model('hf-hub:')",
    "create_model('local-dir:/nowhere/at/all')",
    "create_model(NAME, output_stride=31)",
    "create_model(NAME, out_indices=(1, 2))",
    "create_model(NAME, global_pool='quick')",
    "create_model(NAME, pretrained_cfg=dict(number_of_classes=7))",
    "create_model(NAME, pretrained_cfg_overlay=dict(men=(0.1, 0.2, 0.3)))",
    "create_model('dla60', True, cache_dir=CACHE, pretrained_cfg_overlay=dict(hf_hub_id='me/mine'))",
    "create_model(NAME, True, pretrained_cfg_overlay=dict(file='/nowhere/dla.pth'))",
    "create_model(NAME, True, pretrained_cfg_overlay=dict(file='~nosuch/dla.pth'))",
    "create_model(NAME, features_only=True, checkpoint_path=GETTER12)",
    "create_model(NAME, features_only=True, out_indices=(1, 2, 3), checkpoint_path=MAPS12)",
    "model_entrypoint('dla34')(True, cache_dir=CACHE)",
    "model_entrypoint('dla34', 'resnet')",
    "get_pretrained_cfg('dla35', allow_unregistered=False)",
    "get_pretrained_cfg('dla34.other')",
    "get_pretrained_cfg_value('dla35', 'mean')",
    "DLA((1, 1, 1, 2, 2, 1), (8, 8, 16, 16, 16, 32), drop_connect_rate=0.1)",
    "did(net(), 'reset_classifier', 3, 'median')",
    *(
        f"net().forward_intermediates(x(), {arguments})"
        for arguments in ("7", "0", "[6]", "[-7]", "[]", "output_fmt='NHWC'", "output_fmt='NLC'")
    ),
    "net().prune_intermediate_layers(0)",
    "net().prune_intermediate_layers([9])",
    "features('tree')",
    "features(out_indices=(6,))",
    "features(out_indices=7)",
    *(
        f"resolve_data_config(dict({arguments}), model=net())"
        for arguments in (
            "mean=(0.1, 0.2)", "std=[1, 1]", "input_size=224", "input_size=(224, 224)", "img_size=(64, 64)",
            "img_size='64'",
        )
    ),
    "resolve_data_config()",
    "resolve_data_config({}, {}, None)",
    "create_transform(64, interpolation='random')",
    "create_transform(64, colour_jitter=0.4)",
]  # fmt: skip

# What is meant to differ: the reason, the expression, what ours gives, what timm gives

DIFFERENT: list[tuple[str, str, Any, Any]] = [
    ("the card's one-liner works", "net().reset_classifier(3) is None", False, True),
    ("gradient checkpointing works", "did(net(), 'set_grad_checkpointing').grad_checkpointing", True, "AssertionError"),
    ("finer maps work", "net(output_stride=8).feature_info[5]['reduction']", 8, "AssertionError"),
    ("every photo size works", "tuple(net()(x(3, 33, 97)).shape)", (2, 1000), "RuntimeError"),
    ("drop path works", "net(drop_path_rate=0.1).num_classes", 1000, "TypeError"),
    ("a name is one shape of network; `DLA` builds others", "net(cardinality=8).cardinality", "TypeError", 8),
    ("an existing path needs no prefix", "create_model(FOLDER, pretrained=True).num_classes", 5, "ValueError"),
    (
        "a file says itself how many classes it has",
        "create_model(NAME, True, pretrained_cfg_overlay=dict(file=FILE5)).num_classes", 5, "RuntimeError",
    ),
    (
        "a classifier of the classes that are asked for is loaded, not thrown away",
        "torch.equal(create_model(NAME, True, None, dict(file=FILE5), num_classes=5).fc.bias, STATE5['fc.bias'])", True,
        False,
    ),
    (
        "missing tensors are an error, not a remark in the log",
        "create_model(NAME, True, None, dict(file=CUT5, num_classes=5)).num_classes", "DamagedError", 5,
    ),
    (
        "unknown tensors are an error, not a remark in the log",
        "create_model(NAME, True, None, dict(file=MORE5, num_classes=5)).num_classes", "DamagedError", 5,
    ),
    (
        "a whole network's file is taken for its maps",
        "[m.shape[1] for m in create_model(NAME, features_only=True, out_indices=(1, 2), checkpoint_path=FILE5)(x())]",
        [32, 64], "RuntimeError",
    ),
    ("a folder names its weights, no tag does", "create_model('local-dir:' + FOLDER, pretrained_cfg='in1k')",
     "UsageError", "AssertionError"),
    (
        "a folder names its weights, no overlay does",
        "create_model('local-dir:' + FOLDER, True, None, dict(file=OTHER)).num_classes", "UsageError", 5,
    ),
    ("no map at all is no feature net", "type(features(out_indices=0)).__name__", "UsageError", "FeatureListNet"),
    ("the factory takes the wrappers' options", "list(features('dict', out_indices=(2,), out_map=['a'])(x()))", ["a"],
     "TypeError"),
    ("the factory takes the wrappers' options", "len(features(output_fmt='NCHW', feature_concat=True)(x()))", 5,
     "TypeError"),
    ("these are the networks there are", "list_modules()[:1], len(list_modules())", (["dla"], 1), None),
    ("dla34_half is ours", "'dla34_half' in list_models()", True, False),
    ("dla34_half has no released weights", "is_model_pretrained('dla34_half')", False, False),
    ("colours are left alone", "create_transform(32, True, color_jitter=0.4)(photo).shape", "TypeError", (3, 32, 32)),
    ("colours are left alone", "dict(params(create_transform)).get('color_jitter')", None, 0.4),
    ("random is a choice of training", "type(create_transform((48, 64), interpolation='random')).__name__",
     "UsageError", "Compose"),
    ("any photo becomes RGB", "tuple(create_transform(32)(photo.convert('RGBA')).shape)", (3, 32, 32), "RuntimeError"),
    (
        "the table says whose weights they are",
        "sorted({'origin_url', 'paper_ids', 'paper_name'} & create_model(NAME).pretrained_cfg.keys())",
        ["origin_url", "paper_ids", "paper_name"], [],
    ),
]  # fmt: skip

ROWS = [row for rows in SAME.values() for row in rows]


# Files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("contract")
    model = fill(timm.create_model(NAME, num_classes=5))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, root / "five.pth")
    torch.save({name: t for name, t in state.items() if name != "level3.tree1.root.bn.bias"}, root / "cut.pth")
    torch.save({**state, "more.bias": torch.zeros(2)}, root / "more.pth")
    safetensors.torch.save_file(state, root / "five.safetensors")
    for cls in ("list", "getter"):
        wrapper = timm.create_model(NAME, features_only=True, feature_cls=cls, out_indices=(1, 2))
        torch.save(fill(wrapper).state_dict(), root / f"{cls}.pth")
    labels = {"label_names": list("abcde"), "label_descriptions": {"a": "an apple"}}
    timm.models.save_for_hf(model, str(root / "folder"), model_config=labels, safe_serialization=True)
    _cache(root / "cache", "me/mine", root / "folder")
    released = fill(timm.create_model(NAME))
    timm.models.save_for_hf(released, str(root / "released"), safe_serialization=True)
    _cache(root / "cache", f"timm/{NAME}.in1k", root / "released")
    return {
        "FILE5": str(root / "five.pth"), "SAFE5": str(root / "five.safetensors"), "CUT5": str(root / "cut.pth"),
        "MORE5": str(root / "more.pth"), "STATE5": state, "FOLDER": str(root / "folder"), "CACHE": str(root / "cache"),
        "MAPS12": str(root / "list.pth"), "GETTER12": str(root / "getter.pth"), "OTHER": str(root / "folder"),
    }  # fmt: skip


def _cache(cache: Path, repo: str, folder: Path) -> None:
    """A folder as huggingface_hub keeps it."""
    home, commit = cache / f"models--{repo.replace('/', '--')}", "0" * 40
    (home / "snapshots").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots" / commit).symlink_to(folder)


@pytest.fixture(scope="module")
def sides(files: dict[str, Any]) -> Iterator[tuple[Side, Side]]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield Side(dla, files), Side(timm, files)


# The tests


@pytest.mark.parametrize("expression", ROWS)
def test_same_as_timm(sides: tuple[Side, Side], expression: str) -> None:
    ours, theirs = (side.value(expression) for side in sides)
    assert not isinstance(theirs, Exception), f"timm refuses {expression}: {theirs!r}"
    assert same(ours, theirs), f"{expression}\nours: {ours!r:.2000}\ntimm: {theirs!r:.2000}"


@pytest.mark.parametrize("expression", REFUSED)
def test_refused_as_by_timm(sides: tuple[Side, Side], expression: str) -> None:
    ours, theirs = (side.value(expression) for side in sides)
    assert isinstance(theirs, Exception), f"timm takes {expression}"
    assert same(ours, theirs), f"{expression}\nours: {ours!r:.2000}\ntimm: {theirs!r:.2000}"
    assert isinstance(ours, dla.DlaError | TypeError), "what a user can do wrong is told in words"


@pytest.mark.parametrize(("reason", "expression", "expected", "theirs"), DIFFERENT)
def test_different_on_purpose(
    sides: tuple[Side, Side], reason: str, expression: str, expected: Any, theirs: Any
) -> None:
    found = [side.value(expression) for side in sides]
    ours, timms = (type(value).__name__ if isinstance(value, Exception) else value for value in found)
    assert same(ours, expected), f"{reason}: {found[0]!r}"
    assert theirs is None or same(timms, theirs), f"timm has changed: {found[1]!r}"


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (1, True), (1, 1.0), ([1, 2], [1, 2, 3]), ([1, 2], [2, 1]), ({"a": 1}, {"a": 2}), ({"a": 1}, {"a": 1, "b": 2}),
        ("a", "b"), (None, 0), (torch.ones(2), torch.ones(2, 1)), (torch.ones(2), torch.ones(2) + 1e-4),
        (torch.ones(2), torch.ones(2).double()), (torch.tensor([3, 5]).byte(), torch.tensor([5, 5]).byte()),
        ([torch.ones(2)], torch.ones(2)), (3, ValueError()), (ValueError(), 3), (KeyError(), ValueError()),
        (KeyError(), AssertionError()), (dla.UsageError(), RuntimeError()), (nn.ReLU(), nn.ReLU()),
    ],
)  # fmt: skip
def test_a_difference_is_seen(ours: Any, theirs: Any) -> None:
    assert not same(ours, theirs)


@pytest.mark.parametrize("expression", ["resolve_model_data_config(net())", "net().group_matcher()"])
def test_a_missing_item_is_seen(sides: tuple[Side, Side], expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = sides
    monkeypatch.delitem(ours.names, "resolve_model_data_config")
    monkeypatch.delattr(dla.DLA, "group_matcher")
    with pytest.raises((NameError, AttributeError)):
        ours.value(expression)


def test_every_public_name_of_timms_network_is_there(sides: tuple[Side, Side]) -> None:
    ours, theirs = (side.net() for side in sides)
    plain = set(dir(nn.Module())) | {"pretrained_model_args"}  # how timm's own loader was called
    public = {name for name in set(dir(theirs)) - plain if not name.startswith("_")}
    assert len(public) > 25
    assert public <= set(dir(ours))


def test_the_rows_are_many_and_each_is_one() -> None:
    print(f"\ncontract: {len(ROWS)} rows the same, {len(REFUSED)} refused, {len(DIFFERENT)} different on purpose")
    assert len({*ROWS, *REFUSED}) == len(ROWS) + len(REFUSED) >= 300
    assert all(name in " ".join(ROWS) for name in (*FUNCTIONS, *METHODS))
