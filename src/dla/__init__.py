"""Deep Layer Aggregation: networks, weights, prediction, training.

Everything public is here; a name is imported when it is first used, so `import dla` is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dla.version import __version__

if TYPE_CHECKING:
    from dla.data.options import DataOptions as DataOptions
    from dla.errors import CheckError as CheckError
    from dla.errors import DamagedError as DamagedError
    from dla.errors import DlaError as DlaError
    from dla.errors import ImageError as ImageError
    from dla.errors import OnlyTorchError as OnlyTorchError
    from dla.errors import UnavailableError as UnavailableError
    from dla.errors import UnknownNameError as UnknownNameError
    from dla.errors import UsageError as UsageError
    from dla.images.labels import imagenet_classes as imagenet_classes
    from dla.images.prepare import Preprocessing as Preprocessing
    from dla.images.transform import create_transform as create_transform
    from dla.images.transform import resolve_data_config as resolve_data_config
    from dla.images.transform import resolve_model_data_config as resolve_model_data_config
    from dla.metrics.classify import Comparison as Comparison
    from dla.metrics.classify import Evaluation as Evaluation
    from dla.nets.backbone import DLA as DLA
    from dla.nets.build import create_model as create_model
    from dla.nets.build import model_entrypoint as model_entrypoint
    from dla.nets.graft import graft as graft
    from dla.nets.hda import HDA as HDA
    from dla.nets.ida import IDA as IDA
    from dla.nets.ida import DLAUp as DLAUp
    from dla.nets.registry import PretrainedCfg as PretrainedCfg
    from dla.nets.registry import get_pretrained_cfg as get_pretrained_cfg
    from dla.nets.registry import get_pretrained_cfg_value as get_pretrained_cfg_value
    from dla.nets.registry import is_model as is_model
    from dla.nets.registry import is_model_pretrained as is_model_pretrained
    from dla.nets.registry import list_models as list_models
    from dla.nets.registry import list_modules as list_modules
    from dla.nets.registry import list_pretrained as list_pretrained
    from dla.nets.tree import sum_nodes as sum_nodes
    from dla.records import BenchReport as BenchReport
    from dla.records import BenchRow as BenchRow
    from dla.records import Class as Class
    from dla.records import DataFinding as DataFinding
    from dla.records import DataReport as DataReport
    from dla.records import Exported as Exported
    from dla.records import ExportReport as ExportReport
    from dla.records import Features as Features
    from dla.records import Flip as Flip
    from dla.records import InputError as InputError
    from dla.records import ModelInfo as ModelInfo
    from dla.records import Prediction as Prediction
    from dla.verbs.bench.run import bench as bench
    from dla.verbs.convert import convert as convert
    from dla.verbs.data_check import check_data as check_data
    from dla.verbs.draw import draw as draw
    from dla.verbs.export.run import export as export
    from dla.verbs.info import info as info
    from dla.verbs.predict import Classifier as Classifier
    from dla.verbs.predict import load as load
    from dla.verbs.train.run import train as train
    from dla.verbs.validate.record import Validation as Validation
    from dla.verbs.validate.record import Validations as Validations
    from dla.verbs.validate.run import validate as validate

_HOME = {
    "DLA": "dla.nets.backbone",
    "DLAUp": "dla.nets.ida",
    "HDA": "dla.nets.hda",
    "IDA": "dla.nets.ida",
    "BenchReport": "dla.records",
    "BenchRow": "dla.records",
    "CheckError": "dla.errors",
    "Class": "dla.records",
    "Classifier": "dla.verbs.predict",
    "Comparison": "dla.metrics.classify",
    "DamagedError": "dla.errors",
    "DataFinding": "dla.records",
    "DataOptions": "dla.data.options",
    "DataReport": "dla.records",
    "DlaError": "dla.errors",
    "Evaluation": "dla.metrics.classify",
    "ExportReport": "dla.records",
    "Exported": "dla.records",
    "Features": "dla.records",
    "Flip": "dla.records",
    "ImageError": "dla.errors",
    "InputError": "dla.records",
    "ModelInfo": "dla.records",
    "OnlyTorchError": "dla.errors",
    "Prediction": "dla.records",
    "Preprocessing": "dla.images.prepare",
    "PretrainedCfg": "dla.nets.registry",
    "UnavailableError": "dla.errors",
    "UnknownNameError": "dla.errors",
    "UsageError": "dla.errors",
    "Validation": "dla.verbs.validate.record",
    "Validations": "dla.verbs.validate.record",
    "bench": "dla.verbs.bench.run",
    "check_data": "dla.verbs.data_check",
    "convert": "dla.verbs.convert",
    "create_model": "dla.nets.build",
    "create_transform": "dla.images.transform",
    "draw": "dla.verbs.draw",
    "export": "dla.verbs.export.run",
    "graft": "dla.nets.graft",
    "get_pretrained_cfg": "dla.nets.registry",
    "get_pretrained_cfg_value": "dla.nets.registry",
    "imagenet_classes": "dla.images.labels",
    "info": "dla.verbs.info",
    "is_model": "dla.nets.registry",
    "is_model_pretrained": "dla.nets.registry",
    "list_models": "dla.nets.registry",
    "list_modules": "dla.nets.registry",
    "list_pretrained": "dla.nets.registry",
    "load": "dla.verbs.predict",
    "model_entrypoint": "dla.nets.build",
    "resolve_data_config": "dla.images.transform",
    "resolve_model_data_config": "dla.images.transform",
    "sum_nodes": "dla.nets.tree",
    "train": "dla.verbs.train.run",
    "validate": "dla.verbs.validate.run",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dla' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
