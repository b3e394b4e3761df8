"""Deep Layer Aggregation: networks, weights, prediction, training.

Everything public is here; a name is imported when it is first used, so `import dla` is quick and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dla.version import __version__

if TYPE_CHECKING:
    from dla.errors import CheckError as CheckError
    from dla.errors import DamagedError as DamagedError
    from dla.errors import DlaError as DlaError
    from dla.errors import ImageError as ImageError
    from dla.errors import UnavailableError as UnavailableError
    from dla.errors import UnknownNameError as UnknownNameError
    from dla.errors import UsageError as UsageError
    from dla.images.prepare import Preprocessing as Preprocessing
    from dla.nets.backbone import DLA as DLA
    from dla.nets.build import create_model as create_model
    from dla.nets.build import list_models as list_models
    from dla.records import Class as Class
    from dla.records import InputError as InputError
    from dla.records import Prediction as Prediction
    from dla.verbs.predict import Classifier as Classifier
    from dla.verbs.predict import load as load

_HOME = {
    "DLA": "dla.nets.backbone",
    "CheckError": "dla.errors",
    "Class": "dla.records",
    "Classifier": "dla.verbs.predict",
    "DamagedError": "dla.errors",
    "DlaError": "dla.errors",
    "ImageError": "dla.errors",
    "InputError": "dla.records",
    "Prediction": "dla.records",
    "Preprocessing": "dla.images.prepare",
    "UnavailableError": "dla.errors",
    "UnknownNameError": "dla.errors",
    "UsageError": "dla.errors",
    "create_model": "dla.nets.build",
    "list_models": "dla.nets.build",
    "load": "dla.verbs.predict",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dla' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
