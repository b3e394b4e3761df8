"""Deep Layer Aggregation: networks, weights, prediction, training.

Everything public is here; a name is imported when it is first used, so `import dla` is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dla.version import __version__

if TYPE_CHECKING:
    from dla.benchmarking.bench import bench as bench
    from dla.benchmarking.rows import BenchReport as BenchReport
    from dla.benchmarking.rows import BenchRow as BenchRow
    from dla.catalog import ModelInfo as ModelInfo
    from dla.catalog import info as info
    from dla.data.check import DataFinding as DataFinding
    from dla.data.check import DataReport as DataReport
    from dla.data.check import check_data as check_data
    from dla.data.sources import DataOptions as DataOptions
    from dla.drawing.network import draw as draw
    from dla.errors import CheckError as CheckError
    from dla.errors import DamagedError as DamagedError
    from dla.errors import DlaError as DlaError
    from dla.errors import ImageError as ImageError
    from dla.errors import InputError as InputError
    from dla.errors import OnlyTorchError as OnlyTorchError
    from dla.errors import UnavailableError as UnavailableError
    from dla.errors import UnknownNameError as UnknownNameError
    from dla.errors import UsageError as UsageError
    from dla.evaluation.evaluate import validate as validate
    from dla.evaluation.result import Validation as Validation
    from dla.evaluation.result import Validations as Validations
    from dla.exporting.export import Exported as Exported
    from dla.exporting.export import export as export
    from dla.exporting.verify import Disagreement as Disagreement
    from dla.exporting.verify import ExportReport as ExportReport
    from dla.images.labels import imagenet_classes as imagenet_classes
    from dla.images.preprocessing import Preprocessing as Preprocessing
    from dla.images.timm_transform import create_transform as create_transform
    from dla.images.timm_transform import resolve_data_config as resolve_data_config
    from dla.images.timm_transform import resolve_model_data_config as resolve_model_data_config
    from dla.inference.classifier import Classifier as Classifier
    from dla.inference.classifier import ClassScore as ClassScore
    from dla.inference.classifier import Features as Features
    from dla.inference.classifier import Prediction as Prediction
    from dla.inference.classifier import load as load
    from dla.metrics.classification import Comparison as Comparison
    from dla.metrics.classification import Evaluation as Evaluation
    from dla.models.aggregation import HDA as HDA
    from dla.models.aggregation import graft as graft
    from dla.models.decoder import IDA as IDA
    from dla.models.decoder import DLAUp as DLAUp
    from dla.models.dla import DLA as DLA
    from dla.models.registry import PretrainedCfg as PretrainedCfg
    from dla.models.registry import get_pretrained_cfg as get_pretrained_cfg
    from dla.models.registry import get_pretrained_cfg_value as get_pretrained_cfg_value
    from dla.models.registry import is_model as is_model
    from dla.models.registry import is_model_pretrained as is_model_pretrained
    from dla.models.registry import list_models as list_models
    from dla.models.registry import list_modules as list_modules
    from dla.models.registry import list_pretrained as list_pretrained
    from dla.models.tree import sum_nodes as sum_nodes
    from dla.training.run import train as train
    from dla.weights.convert import convert as convert
    from dla.weights.create import create_model as create_model
    from dla.weights.create import model_entrypoint as model_entrypoint

_HOME = {
    "DLA": "dla.models.dla",
    "DLAUp": "dla.models.decoder",
    "HDA": "dla.models.aggregation",
    "IDA": "dla.models.decoder",
    "BenchReport": "dla.benchmarking.rows",
    "BenchRow": "dla.benchmarking.rows",
    "CheckError": "dla.errors",
    "ClassScore": "dla.inference.classifier",
    "Classifier": "dla.inference.classifier",
    "Comparison": "dla.metrics.classification",
    "DamagedError": "dla.errors",
    "DataFinding": "dla.data.check",
    "DataOptions": "dla.data.sources",
    "DataReport": "dla.data.check",
    "DlaError": "dla.errors",
    "Evaluation": "dla.metrics.classification",
    "ExportReport": "dla.exporting.verify",
    "Exported": "dla.exporting.export",
    "Features": "dla.inference.classifier",
    "Disagreement": "dla.exporting.verify",
    "ImageError": "dla.errors",
    "InputError": "dla.errors",
    "ModelInfo": "dla.catalog",
    "OnlyTorchError": "dla.errors",
    "Prediction": "dla.inference.classifier",
    "Preprocessing": "dla.images.preprocessing",
    "PretrainedCfg": "dla.models.registry",
    "UnavailableError": "dla.errors",
    "UnknownNameError": "dla.errors",
    "UsageError": "dla.errors",
    "Validation": "dla.evaluation.result",
    "Validations": "dla.evaluation.result",
    "bench": "dla.benchmarking.bench",
    "check_data": "dla.data.check",
    "convert": "dla.weights.convert",
    "create_model": "dla.weights.create",
    "create_transform": "dla.images.timm_transform",
    "draw": "dla.drawing.network",
    "export": "dla.exporting.export",
    "graft": "dla.models.aggregation",
    "get_pretrained_cfg": "dla.models.registry",
    "get_pretrained_cfg_value": "dla.models.registry",
    "imagenet_classes": "dla.images.labels",
    "info": "dla.catalog",
    "is_model": "dla.models.registry",
    "is_model_pretrained": "dla.models.registry",
    "list_models": "dla.models.registry",
    "list_modules": "dla.models.registry",
    "list_pretrained": "dla.models.registry",
    "load": "dla.inference.classifier",
    "model_entrypoint": "dla.weights.create",
    "resolve_data_config": "dla.images.timm_transform",
    "resolve_model_data_config": "dla.images.timm_transform",
    "sum_nodes": "dla.models.tree",
    "train": "dla.training.run",
    "validate": "dla.evaluation.evaluate",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dla' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
